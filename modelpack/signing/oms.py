"""``model.sig``: a signature over a folder of files, OpenSSF Model Signing 1.0.

https://github.com/ossf/model-signing-spec and the ``model-signing`` package 1.1.1, which verifies it: a sigstore bundle
whose statement lists every file. It travels inside the artifact, so that what is unpacked from it still proves itself.
"""

import hashlib
from collections.abc import Mapping

from modelpack.errors import InvalidInputError
from modelpack.oci import strict_json
from modelpack.oci.digest import Digest
from modelpack.signing import envelope
from modelpack.signing.keys import PrivateKey

FILE_NAME = "model.sig"
PREDICATE_TYPE = "https://model_signing/signature/v1.0"


def sign_files(name: str, files: Mapping[str, Digest], key: PrivateKey) -> bytes:
    """The content of ``model.sig`` for a folder ``name`` with ``files``: path, with ``/``, to digest.

    The same arguments give the same bytes, unless the key lies on a token. Raises InvalidInputError where the key is
    not ECDSA P-256: the format ties each curve to a hash of its own, and our signatures use SHA-256.
    """
    if key.public.kind != "ECDSA P-256":
        raise InvalidInputError(f"{FILE_NAME} is signed with an ECDSA P-256 key; this one is {key.public.kind}")
    ordered = sorted(files.items())
    root = hashlib.sha256(b"".join(bytes.fromhex(digest.hex) for _, digest in ordered))
    predicate = {
        "serialization": {
            "method": "files",
            "hash_type": "sha256",
            "allow_symlinks": False,
            "ignore_paths": [FILE_NAME],
        },
        "resources": [{"name": path, "algorithm": "sha256", "digest": digest.hex} for path, digest in ordered],
    }
    subject = envelope.Subject({"sha256": root.hexdigest()}, name, {})
    unsigned = envelope.Envelope(envelope.statement([subject], PREDICATE_TYPE, predicate), b"")
    signed = envelope.Envelope(unsigned.payload, key.sign(unsigned.signed))
    document = strict_json.parse_object(envelope.Bundle(signed, _hint(key)).to_bytes(), what=FILE_NAME)
    # The package's own reader wants the list, even where there is no log.
    document["verificationMaterial"]["tlogEntries"] = []
    return strict_json.canonical(document)


def _hint(key: PrivateKey) -> str:
    """Unlike cosign's: the hexadecimal SHA-256 of the public key's PEM, which the package insists on."""
    return hashlib.sha256(key.public.pem).hexdigest()
