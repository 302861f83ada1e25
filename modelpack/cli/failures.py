"""Which exit code an error means, and what to do next: the only file that knows both."""

import errno
import os
from dataclasses import dataclass

from modelpack import errors as e

EXIT_CODES: dict[int, str] = {
    0: "ok",
    1: "failed",
    2: "usage, or a malformed reference, policy, specification or setting",
    3: "not found",
    4: "access denied, or gated",
    5: "registry or network unavailable: the only one worth an automatic retry",
    6: "untrusted: signature, policy or digest; never retry",
    7: "a check failed: smoke, device assertion, quality gate",
    8: "not enough disk or memory",
    9: "llama.cpp crashed or timed out in its worker",
    70: "a bug of ours",
    130: "interrupted; what was transferred is kept",
}

UNTRUSTED = 6
CHECK_FAILED = 7
WORKER_FAILED = 9
BUG = 70
INTERRUPTED = 130

# The most special class first: the first that fits gives exit code and hint.
_TABLE: tuple[tuple[type[e.ModelpackError], int, str], ...] = (
    (e.MalformedReferenceError, 2, "references look like registry.example.com/team/model:tag"),
    (e.UnknownQuantizationError, 2, ""),
    (e.MalformedPolicyError, 2, "fix the policy file, or name another with --policy"),
    (e.InvalidKeyError, 2, "modelpack keygen makes a key; its password comes from a prompt or MODELPACK_PASSWORD"),
    (e.InvalidInputError, 2, "see --help"),
    (
        e.UnknownArchitectureError,
        1,
        "modelpack converter install adds llama.cpp's own converter; or build from a GGUF file made elsewhere",
    ),
    (
        e.TokenizerMismatchError,
        1,
        "such a model may talk nonsense; --allow-tokenizer-mismatch builds it all the same, and the artifact says so",
    ),
    (e.SeveralManifestsError, 1, "modelpack index show REF lists them, with their tags and digests"),
    (e.PackedModelError, 1, "modelpack unpack REF makes its files usable"),
    (e.InvalidGGUFError, 1, "the file is damaged or hostile: fetch it again from where it came from"),
    (e.InvalidCheckpointError, 1, "fetch the checkpoint again; only safetensors checkpoints are read"),
    (e.MissingFileError, 3, "name one that is there"),
    (e.NotFoundError, 3, "modelpack list shows what is in the store"),
    (
        e.ForeignRealmError,
        4,
        'if it belongs to the registry, allow it in config.toml: trusted_realms = ["ITS-HOST"], without the port',
    ),
    (e.AccessDeniedError, 4, "modelpack login REGISTRY; for a gated model accept its terms and set HF_TOKEN"),
    (e.HubUnavailableError, 5, "try again; HF_ENDPOINT and HTTPS_PROXY say where the hub is looked for"),
    (e.RegistryUnavailableError, 5, "try again: what was transferred is kept"),
    (e.UnavailableError, 5, "try again"),
    (e.RollbackError, 6, "ask the publisher; --allow-rollback takes the older one all the same"),
    (e.NotLockedError, 6, "modelpack lock REF verifies it as it is now, and writes that down"),
    (e.RevokedError, 6, "do not use it; the policy says so: modelpack policy check shows what it revokes"),
    (e.UnsignedError, 6, "ask the publisher to run: modelpack sign REF --key KEY"),
    (
        e.PolicyRefusedError,
        6,
        "modelpack policy explain REF shows which rule decides and what it needs; modelpack trust list shows all",
    ),
    (e.InvalidSignatureError, 6, "signed by somebody else, or altered: compare the key's id with the publisher's"),
    (e.DigestMismatchError, 6, "do not use it; if it came over a proxy or cache, look there"),
    (e.UntrustedError, 6, "modelpack trust list shows whom you trust"),
    (e.CheckFailedError, 7, ""),
    (
        e.InsufficientDiskError,
        8,
        "modelpack df and modelpack prune show and free space; --work-dir moves temporary files",
    ),
    (e.InsufficientMemoryError, 8, "use a smaller variant or a smaller --context"),
    (e.InsufficientResourcesError, 8, ""),
    (e.WorkerTimeoutError, 9, "raise --timeout, or use a smaller model"),
    (
        e.WorkerCrashedError,
        9,
        "the last lines of its log are above; a smaller --context needs less memory, --device cpu no GPU",
    ),
    (e.WorkerError, 1, "--context N gives a longer conversation room; modelpack inspect shows what the model is"),
    (e.StoreLockedError, 1, "wait for the other modelpack command to end"),
    (
        e.PlainHTTPError,
        1,
        "put its certificate into ~/.config/docker/certs.d/HOST:PORT/ca.crt, and leave out --plain-http",
    ),
    (e.RegistryRefusedError, 1, "modelpack doctor registry HOST shows what the registry takes"),
)


@dataclass(frozen=True, slots=True)
class Failure:
    """How an error is told: its exit code, code name, sentence and next step."""

    exit: int
    code: str
    message: str
    hint: str
    rejections: tuple[tuple[str, str], ...] = ()

    def to_json(self) -> dict[str, object]:
        answer: dict[str, object] = {"code": self.code, "exit": self.exit, "message": self.message}
        if self.hint:
            answer["hint"] = self.hint
        answer["retryable"] = self.exit == 5
        if self.rejections:
            answer["rejections"] = [{"where": where, "reason": reason} for where, reason in self.rejections]
        return answer


# What the machine does to us where no library of ours had more to say about it.
_OS_ERRORS: dict[int, tuple[int, str, str]] = {
    errno.ENOSPC: (8, "disk.insufficient", "modelpack df and modelpack prune show and free space"),
    errno.EDQUOT: (8, "disk.insufficient", "the disk quota is used up"),
    errno.EFBIG: (8, "disk.insufficient", "the limit on file sizes (ulimit -f) is too small for a model"),
    errno.EROFS: (1, "disk.read-only", "--store and --work-dir name another place"),
    errno.EACCES: (4, "disk.denied", "--store and --work-dir name another place"),
    errno.EPERM: (4, "disk.denied", "--store and --work-dir name another place"),
    errno.EISDIR: (2, "path.unusable", "a folder is in the way: name a file"),
    errno.ENAMETOOLONG: (2, "path.unusable", "name another place"),
    errno.ELOOP: (2, "path.unusable", "name another place"),
    errno.EBUSY: (2, "path.unusable", "name another place"),
    errno.ENOTDIR: (2, "path.unusable", "a file is where a folder should be: name another place"),
    errno.EEXIST: (2, "path.unusable", "something else is in the way: name another place"),
    errno.ENOENT: (2, "path.unusable", "name a place that is there, or where folders can be made"),
    errno.EIO: (1, "disk.broken", "look at the system's log: the disk may be failing"),
    errno.EMFILE: (1, "files.exhausted", "raise the limit on open files (ulimit -n)"),
    errno.ENOMEM: (8, "memory.insufficient", "use a smaller variant"),
}


def explain_os_error(error: OSError) -> Failure | None:
    """None for an error that a correct program would not meet."""
    known = _OS_ERRORS.get(error.errno or 0)
    if known is None:
        return None
    place = error.filename2 or error.filename  # of a rename the new name: the old one is a temporary of ours
    message = f"{os.fsdecode(place)}: {error.strerror}" if isinstance(place, str | bytes) else str(error)
    return Failure(known[0], known[1], message, known[2])


def explain(error: e.ModelpackError) -> Failure:
    for kind, exit_code, hint in _TABLE:
        if isinstance(error, kind):
            # A place that knows better what to do next may say so in a note on the error.
            notes = getattr(error, "__notes__", ())
            rejections = error.rejections if isinstance(error, e.UntrustedError) else ()
            return Failure(exit_code, error.code, str(error), notes[0] if notes else hint, rejections)
    return Failure(1, error.code, str(error), "")
