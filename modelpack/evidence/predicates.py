"""The predicate types that modelpack knows by name, and what their specifications ask of a predicate.

Any other type can be attested as well; nothing is known then about what its predicate should look like.
"""

from collections.abc import Mapping
from typing import Any

from modelpack.errors import InvalidInputError
from modelpack.schemas import violations
from modelpack.signing.signature import SIGN_PREDICATE

SLSA_PROVENANCE = "https://slsa.dev/provenance/v1"
TEST_RESULT = "https://in-toto.io/attestation/test-result/v0.1"
CYCLONEDX = "https://cyclonedx.org/bom"

NAMES = {"slsa": SLSA_PROVENANCE, "test-result": TEST_RESULT, "cyclonedx": CYCLONEDX}

_SCHEMAS = {
    SLSA_PROVENANCE: "predicates/slsa-provenance",
    TEST_RESULT: "predicates/test-result",
    CYCLONEDX: "predicates/cyclonedx",
}


def predicate_type(name: str) -> str:
    """The URI of a type, given as that or by its short name. Raises InvalidInputError."""
    if name == SIGN_PREDICATE:
        raise InvalidInputError(f"{name} is what a signature is: modelpack sign makes those")
    if name in NAMES:
        return NAMES[name]
    if ":" not in name:
        raise InvalidInputError(f"there is no predicate type {name!r}: {', '.join(NAMES)}, or a URI")
    return name


def short_name(kind: str) -> str:
    """What a person calls a type: the reverse of ``predicate_type``."""
    return next((name for name, uri in NAMES.items() if uri == kind), kind)


def check_predicate(kind: str, predicate: Mapping[str, Any]) -> None:
    """Raises InvalidInputError for a predicate of a known type that its specification does not allow."""
    if kind in _SCHEMAS and (broken := violations(_SCHEMAS[kind], dict(predicate))):
        raise InvalidInputError(f"not a predicate of type {short_name(kind)}: {broken[0]:.300}")
