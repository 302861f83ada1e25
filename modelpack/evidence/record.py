"""Build records: what a build can say about its artifact, kept in the store until somebody signs it.

A statement exists only signed; until then its predicate is a note of this store and leaves it with nobody's name on it.
"""

from collections.abc import Mapping
from datetime import datetime
from typing import Any

from modelpack import catalog
from modelpack.errors import InvalidInputError, UnsupportedError
from modelpack.evidence.predicates import check_predicate
from modelpack.oci.digest import Digest
from modelpack.oci.manifest import Descriptor
from modelpack.oci.reference import Reference
from modelpack.oci.target import Source, Target
from modelpack.signing.attestation import Attested, attest
from modelpack.signing.keys import PrivateKey
from modelpack.store import Store

Predicates = Mapping[str, Mapping[str, Any]]
"""Predicates by their type."""


def write_record(store: Store, digest: Digest, predicates: Predicates) -> None:
    """Keep what a build says about ``digest``; the newest build speaks."""
    for kind, predicate in predicates.items():
        check_predicate(kind, predicate)
    store.put_build_record(digest, {"schema": 1, "predicates": predicates})


def read_record(store: Store, digest: Digest) -> dict[str, dict[str, Any]]:
    """Empty for what was not built here, and for a record that we do not understand."""
    predicates = (store.build_record(digest) or {}).get("predicates")
    if not isinstance(predicates, dict) or not all(isinstance(one, dict) for one in predicates.values()):
        return {}
    try:
        for kind, predicate in predicates.items():
            check_predicate(kind, predicate)
    except InvalidInputError:
        return {}
    return predicates


def attest_build(
    store: Store,
    target: Target,
    reference: Reference,
    subject: Descriptor,
    key: PrivateKey,
    *,
    now: datetime,
    legacy: bool = False,
) -> list[Attested]:
    """Sign what this store knows about how ``subject`` was built, at ``target``; nothing for what was built elsewhere.

    Raises as ``attest`` does.
    """
    predicates = read_record(store, subject.digest)
    files = weights_of(target, subject) if predicates else {}
    return [
        attest(
            target,
            reference,
            subject,
            key,
            predicate_type=kind,
            predicate=predicate,
            created=now,
            files=files,
            legacy=legacy,
        )
        for kind, predicate in predicates.items()
    ]


def weights_of(source: Source, subject: Descriptor) -> dict[str, Digest]:
    """The GGUF files of an artifact by name, to be subjects beside it; none where it is no model."""
    try:
        _, model = catalog.read_model(source, subject)
    except UnsupportedError:
        return {}
    return {file.name: file.digest for file in model.weights}
