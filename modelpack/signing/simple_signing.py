"""Cosign's tag scheme: a "simple signing" payload as a layer, its signature beside it as an annotation.

https://github.com/sigstore/cosign/blob/main/specs/SIGNATURE_SPEC.md; the key of the digest is lower case in what cosign
really writes, and containers/image reads exactly these fields.
"""

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from modelpack.errors import InvalidContentError, UnsupportedError
from modelpack.oci import strict_json
from modelpack.oci.digest import Digest
from modelpack.oci.manifest import Descriptor
from modelpack.signing.candidate import text_annotations
from modelpack.signing.strict_base64 import decode_base64

PAYLOAD_TYPE = "application/vnd.dev.cosign.simplesigning.v1+json"
CONFIG_TYPE = "application/vnd.oci.image.config.v1+json"
SIGNATURE_ANNOTATION = "dev.cosignproject.cosign/signature"
CERTIFICATE_ANNOTATION = "dev.sigstore.cosign/certificate"

# The payload holds a name, a digest and a few annotations; cosign's are some 250 bytes.
MAX_PAYLOAD_SIZE = 1 << 20

_KIND = "cosign container image signature"


def signature_tag(subject: Digest) -> str:
    """The tag under which signatures of ``subject`` lie."""
    return f"sha256-{subject.hex}.sig"


def attestation_tag(subject: Digest) -> str:
    """The tag under which attestations of ``subject`` lie."""
    return f"sha256-{subject.hex}.att"


@dataclass(frozen=True, slots=True)
class Payload:
    """What is signed: a reference (``host/repo``, or ``host/repo:tag``), a digest, and annotations."""

    reference: str
    digest: Digest
    annotations: Mapping[str, str]

    @classmethod
    def parse(cls, raw: bytes) -> "Payload":
        """Raises InvalidContentError where a field of ``critical`` is missing, unknown or malformed."""
        document = strict_json.parse_object(raw, what="payload")
        try:
            critical = document["critical"]
            identity, image = critical["identity"], critical["image"]
            shape = (set(document) - {"optional"}, set(critical), set(identity), set(image))
            reference, digest, kind = identity["docker-reference"], image["docker-manifest-digest"], critical["type"]
        except (KeyError, TypeError) as error:
            raise InvalidContentError(f"payload lacks a field: {error!s:.80}") from error
        if shape != ({"critical"}, {"identity", "image", "type"}, {"docker-reference"}, {"docker-manifest-digest"}):
            raise InvalidContentError("payload has fields that simple signing does not know")
        if kind != _KIND:
            raise InvalidContentError(f"payload is of type {kind!r:.80}, not {_KIND!r}")
        if not isinstance(reference, str) or not isinstance(digest, str):
            raise InvalidContentError("payload has a reference or a digest that is not a string")
        optional = document.get("optional")
        if optional is not None and not isinstance(optional, dict):
            raise InvalidContentError("payload has an 'optional' that is not an object")
        return cls(reference, Digest(digest), text_annotations(optional or {}))

    def to_bytes(self) -> bytes:
        return strict_json.canonical(
            {
                "critical": {
                    "identity": {"docker-reference": self.reference},
                    "image": {"docker-manifest-digest": str(self.digest)},
                    "type": _KIND,
                },
                "optional": dict(sorted(self.annotations.items())) or None,
            }
        )


def signature_of(layer: Descriptor) -> bytes:
    """The raw signature in a layer's annotations. Raises InvalidContentError, UnsupportedError for a keyless one."""
    if layer.media_type != PAYLOAD_TYPE:
        raise UnsupportedError(f"layer is of type {layer.media_type!r:.120}, not {PAYLOAD_TYPE}")
    if layer.annotations.get(CERTIFICATE_ANNOTATION):
        raise UnsupportedError("keyless: signed with a certificate in the tag scheme, which is not evaluated")
    return decode_base64(layer.annotations.get(SIGNATURE_ANNOTATION), what="signature annotation")


def signed_layer(payload: Payload, signature: bytes) -> Descriptor:
    annotations = {SIGNATURE_ANNOTATION: base64.b64encode(signature).decode()}
    return Descriptor.of(payload.to_bytes(), PAYLOAD_TYPE, annotations=annotations)


def image_config(layers: Sequence[Descriptor]) -> bytes:
    """The image config that cosign writes: one entry of history and one diff id per layer, no clock."""
    epoch = "0001-01-01T00:00:00Z"
    return strict_json.canonical(
        {
            "architecture": "",
            "created": epoch,
            "history": [{"created": epoch} for _ in layers],
            "os": "",
            "rootfs": {"type": "layers", "diff_ids": [str(layer.digest) for layer in layers]},
            "config": {},
        }
    )
