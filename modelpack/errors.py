"""One tree of errors. The library raises facts; exit codes and hints live in ``cli/failures.py``.

Every class carries a stable ``code`` for machines; the message is one sentence for a person.
"""

from typing import ClassVar


class ModelpackError(Exception):
    """Anything that modelpack can explain. The base of the tree."""

    code: ClassVar[str] = "failed"


# What the user gave us is malformed.


class InvalidInputError(ModelpackError):
    """An argument, a settings file or a specification cannot mean anything."""

    code = "input.invalid"


class MalformedReferenceError(InvalidInputError):
    code = "reference.malformed"


class UnknownQuantizationError(InvalidInputError):
    code = "quantization.unknown"


class MalformedPolicyError(InvalidInputError):
    code = "policy.malformed"


# What we read, from a disk or a wire, is malformed or beyond what we read.


class InvalidContentError(ModelpackError):
    """A file, header, manifest or answer breaks the format it claims to have."""

    code = "content.invalid"


class InvalidGGUFError(InvalidContentError):
    code = "gguf.invalid"


class InvalidCheckpointError(InvalidContentError):
    code = "checkpoint.invalid"


class UnsupportedError(ModelpackError):
    """Well-formed, but not something that modelpack handles."""

    code = "unsupported"


class PackedModelError(UnsupportedError):
    """A model's files lie in archives, and it is to be run."""

    code = "model.packed"


class SeveralManifestsError(UnsupportedError):
    """An index, where one model is wanted."""


class UnknownArchitectureError(UnsupportedError):
    code = "architecture.unknown"


class ConversionError(ModelpackError):
    """A checkpoint could not be turned into a GGUF file, or a GGUF file not into another."""

    code = "conversion.failed"


class TokenizerMismatchError(ConversionError):
    """llama.cpp tokenizes texts otherwise than the checkpoint's own tokenizer; ``share`` says how many: ``3/320``."""

    code = "conversion.tokenizer-mismatch"

    def __init__(self, message: str, *, share: str) -> None:
        super().__init__(message)
        self.share = share


# Something is not there, or not for us, or not answering.


class NotFoundError(ModelpackError):
    code = "not-found"


class MissingFileError(NotFoundError):
    """A file or folder of this machine, or a file of a model, named by a person."""


class AccessDeniedError(ModelpackError):
    code = "access.denied"


class ForeignRealmError(AccessDeniedError):
    """A registry asks for its credentials at a site that is neither its own nor trusted."""


class UnavailableError(ModelpackError):
    """A registry, the hub or the network does not answer: the only kind worth an automatic retry."""

    code = "unavailable"


class RegistryUnavailableError(UnavailableError):
    code = "registry.unavailable"


class HubUnavailableError(UnavailableError):
    code = "hub.unavailable"


class RegistryRefusedError(ModelpackError):
    """The registry understood the request and will not carry it out (a 4xx that is none of the above)."""

    code = "registry.refused"


class PlainHTTPError(RegistryRefusedError):
    """It speaks TLS, and we were told, or assumed on the loopback interface, that it does not."""

    code = "registry.tls"


# Something is not to be trusted. Never retried.


class UntrustedError(ModelpackError):
    code = "untrusted"

    rejections: tuple[tuple[str, str], ...] = ()
    """What was looked at and turned away, (where, reason) each: signatures that did not count."""


class DigestMismatchError(UntrustedError):
    """Bytes differ in digest or size from what their descriptor promised."""

    code = "digest.mismatch"


class UnsignedError(UntrustedError):
    code = "signature.missing"


class PolicyRefusedError(UntrustedError):
    code = "policy.refused"


class RollbackError(PolicyRefusedError):
    """Something newer was verified under this tag before."""

    code = "policy.rollback"


class NotLockedError(PolicyRefusedError):
    """The lock file says nothing about it, or something else."""

    code = "policy.not-locked"


class RevokedError(PolicyRefusedError):
    """The policy names this artifact, or a blob of it, as one that nobody may use."""

    code = "policy.revoked"


class InvalidSignatureError(UntrustedError):
    code = "signature.invalid"


class InvalidKeyError(InvalidInputError):
    """A key file is malformed, of an unsupported kind, or the password is wrong."""

    code = "key.invalid"


# A check came out negative.


class CheckFailedError(ModelpackError):
    code = "check.failed"


# The machine is too small.


class InsufficientResourcesError(ModelpackError):
    code = "resources.insufficient"


class InsufficientDiskError(InsufficientResourcesError):
    code = "disk.insufficient"


class InsufficientMemoryError(InsufficientResourcesError):
    code = "memory.insufficient"


# llama.cpp, which runs in a child process.


class WorkerError(ModelpackError):
    code = "worker.failed"


class WorkerCrashedError(WorkerError):
    """The child that ran llama.cpp ended by a signal or without an answer."""

    code = "worker.crashed"


class WorkerTimeoutError(WorkerError):
    code = "worker.timeout"


class StoreLockedError(ModelpackError):
    """Another process holds the lock that this command needs."""

    code = "store.locked"
