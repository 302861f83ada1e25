"""The Hugging Face hub: resolve a revision to a commit, list what it holds, fetch it. The door to huggingface_hub.

The client is huggingface_hub's own, so its settings hold: HF_TOKEN, HF_HOME, HF_ENDPOINT, HF_HUB_OFFLINE and proxies.
What is fetched is decided here: weights as safetensors, and text; never pickle and never code.
"""

import contextlib
import hashlib
import logging
import os
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, cast

from modelpack.atomic_file import disk_errors
from modelpack.errors import (
    AccessDeniedError,
    DigestMismatchError,
    HubUnavailableError,
    InvalidContentError,
    MalformedReferenceError,
    NotFoundError,
    UnsupportedError,
)
from modelpack.oci.reference import HubReference
from modelpack.progress import SILENT, Progress, Step

if TYPE_CHECKING:
    from huggingface_hub import HfApi

logger = logging.getLogger(__name__)

MAX_FILES = 10_000

_COMMIT = re.compile(r"[0-9a-f]{40}", re.ASCII)
_SHA256 = re.compile(r"[0-9a-f]{64}", re.ASCII)
_SEGMENT = re.compile(r"\w[\w .+-]{0,200}", re.ASCII)
_MAX_DEPTH = 3
# Matched against a file's name in lower case. Everything else stays where it is.
_WANTED = re.compile(
    r".*\.(?:safetensors|json|jinja|tiktoken)|tokenizer\.model(?:\.v\d+)?|spiece\.model|sentencepiece\.bpe\.model"
    r"|(?:vocab|merges)\.txt|(?:licen[cs]e|notice|copying)[\w.-]*|readme\.md",
    re.ASCII,
)
_CODE_OR_PICKLE = (".py", ".bin", ".pt", ".pth", ".pkl", ".ckpt", ".sh", ".so")


@dataclass(frozen=True, slots=True)
class SnapshotFile:
    """One file of a commit: ``path`` with forward slashes; ``sha256`` where the hub knows it (LFS), as hex."""

    path: str
    size: int
    sha256: str | None = None
    git_blob: str | None = None
    """The sha1 that git gives a file which is not in LFS."""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What a revision was when it was resolved: a commit never changes."""

    repository: str
    commit: str
    committed_at: datetime | None
    files: tuple[SnapshotFile, ...]


def resolve(reference: HubReference, *, token: str | None = None, endpoint: str | None = None) -> Snapshot:
    """The commit that a revision names now, and those of its files that may be fetched.

    In offline mode the answer comes from the hub's cache, without a date. ``token`` and ``endpoint`` override
    huggingface_hub's settings.

    Raises NotFoundError, AccessDeniedError, HubUnavailableError, and UnsupportedError when it has no safetensors.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import OfflineModeIsEnabled

    with _translated(str(reference)):
        api = HfApi(endpoint=endpoint, token=token)
        try:
            info = api.model_info(reference.repository, revision=reference.revision, files_metadata=True)
        except OfflineModeIsEnabled:
            return _resolve_cached(reference)
        if info.sha is None or not _COMMIT.fullmatch(info.sha) or len(info.siblings or ()) > MAX_FILES:
            raise InvalidContentError(f"the hub's answer about {reference} names no commit, or more files than we read")
        files = []
        for sibling in info.siblings or ():
            if _is_wanted(sibling.rfilename):
                sha256 = sibling.lfs.sha256 if sibling.lfs else None
                if type(sibling.size) is not int or sibling.size < 0 or (sha256 and not _SHA256.fullmatch(sha256)):
                    raise InvalidContentError(
                        f"the hub's answer about {reference} is malformed at {sibling.rfilename!r}"
                    )
                git_blob = None if sibling.lfs else sibling.blob_id
                files.append(SnapshotFile(sibling.rfilename, sibling.size, sha256, git_blob))
        committed_at = _committed_at(api, reference.repository, info.sha)
    return Snapshot(reference.repository, info.sha, committed_at, _select(reference, files))


def fetch(
    snapshot: Snapshot,
    directory: Path,
    *,
    progress: Progress = SILENT,
    token: str | None = None,
    endpoint: str | None = None,
) -> Path:
    """Bring a snapshot's files into ``directory``, which is returned; each is checked against size and hash.

    They go through the hub's cache (HF_HOME), so that an interrupted fetch goes on where it stopped and other programs
    find them, too. Raises as ``resolve`` does, and DigestMismatchError, InsufficientDiskError.
    """
    total = sum(file.size for file in snapshot.files)
    with (
        _translated(f"hf://{snapshot.repository}@{snapshot.commit}"),
        progress.step(f"fetch {snapshot.repository}", total=total) as step,
    ):
        for file in snapshot.files:
            _place(_download(snapshot, file, step, token, endpoint), directory / file.path)
    return directory


def _download(snapshot: Snapshot, file: SnapshotFile, step: Step, token: str | None, endpoint: str | None) -> Path:
    from huggingface_hub import hf_hub_download

    for attempt in (1, 2):
        counter = _Counter(step)
        path = Path(
            hf_hub_download(
                snapshot.repository,
                file.path,
                revision=snapshot.commit,
                token=token,
                endpoint=endpoint,
                library_name="modelpack",
                # A cached file that is wrong is fetched once more.
                force_download=attempt == 2,
                tqdm_class=cast("type[Any]", counter.bar),  # it only calls what _Bar has
            )
        ).resolve()
        if _matches(path, file):
            step.advance(max(0, file.size - counter.count))  # what the cache had already
            return path
        logger.warning("%s came with another size or hash than the hub announced", file.path)
    raise DigestMismatchError(f"{file.path} of {snapshot.repository} is not what commit {snapshot.commit} promises")


def _matches(path: Path, file: SnapshotFile) -> bool:
    size = path.stat().st_size
    if size != file.size:
        return False
    if file.sha256:
        hasher, expected = hashlib.sha256(), file.sha256
    elif file.git_blob:
        hasher, expected = hashlib.sha1(b"blob %d\0" % size, usedforsecurity=False), file.git_blob
    else:
        return True
    with path.open("rb") as content:
        while chunk := content.read(4 << 20):
            hasher.update(chunk)
    return hasher.hexdigest() == expected


def _place(source: Path, target: Path) -> None:
    """A second name for the cached file, or a copy where the file system has no second names."""
    target.parent.mkdir(parents=True, exist_ok=True)
    target.unlink(missing_ok=True)
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


def _committed_at(api: "HfApi", repository: str, commit: str) -> datetime | None:
    from huggingface_hub.errors import HfHubHTTPError

    try:
        commits = api.list_repo_commits(repository, revision=commit)
    except (HfHubHTTPError, KeyError, ValueError) as error:
        logger.warning("the date of commit %s of %s is not known: %s", commit, repository, error)
        return None
    return commits[0].created_at.astimezone(UTC) if commits else None


def _resolve_cached(reference: HubReference) -> Snapshot:
    from huggingface_hub import snapshot_download

    directory = Path(snapshot_download(reference.repository, revision=reference.revision, local_files_only=True))
    files = []
    for path in sorted(directory.rglob("*")):
        name = path.relative_to(directory).as_posix()
        if path.is_file() and _is_wanted(name):
            blob = path.resolve().name  # the cache names blobs by what the hub calls them
            sha256 = blob if _SHA256.fullmatch(blob) else None
            files.append(SnapshotFile(name, path.stat().st_size, sha256, blob if _COMMIT.fullmatch(blob) else None))
    return Snapshot(reference.repository, directory.name, None, _select(reference, files))


def _is_wanted(path: str) -> bool:
    segments = path.split("/")
    name = segments[-1].lower()
    is_plain = len(segments) <= _MAX_DEPTH and all(_SEGMENT.fullmatch(segment) for segment in segments)
    # Weights in subdirectories are other forms of the same model (onnx/, original/).
    is_elsewhere = len(segments) > 1 and not name.endswith((".json", ".jinja"))
    return is_plain and not is_elsewhere and not name.endswith(_CODE_OR_PICKLE) and _WANTED.fullmatch(name) is not None


def _select(reference: HubReference, files: list[SnapshotFile]) -> tuple[SnapshotFile, ...]:
    """Mistral's repositories hold the weights twice: as model-*.safetensors and as consolidated.safetensors."""
    weights = [file.path for file in files if file.path.endswith(".safetensors")]
    if not weights:
        raise UnsupportedError(f"{reference} has no safetensors, and pickled weights can run code")
    if any(path.startswith("model") for path in weights):
        files = [file for file in files if not file.path.startswith("consolidated")]
    return tuple(sorted(files, key=lambda file: file.path))


class _Counter:
    """Tells a Step about the bytes of one download."""

    def __init__(self, step: Step) -> None:
        self.step = step
        self.count = 0
        self.has_bar = False

    def bar(self, *_: Any, initial: int = 0, **__: Any) -> "_Bar":
        # A download from Xet storage has two bars, for the file and for what travels; the first is the file.
        bar = _Bar(None if self.has_bar else self)
        self.has_bar = True
        bar.update(initial)
        return bar

    def advance(self, amount: int) -> None:
        self.count += amount
        self.step.advance(amount)


class _Bar:
    """As much of a tqdm bar as huggingface_hub uses."""

    def __init__(self, counter: _Counter | None) -> None:
        self._counter = counter
        self.total: float | None = None
        self.n = 0

    def update(self, amount: float | None = 1) -> None:
        self.n += int(amount or 0)
        if self._counter:
            self._counter.advance(int(amount or 0))

    def set_description(self, *_: Any, **__: Any) -> None:
        pass

    def set_postfix_str(self, *_: Any, **__: Any) -> None:
        pass

    def refresh(self, *_: Any, **__: Any) -> None:
        pass

    def close(self) -> None:
        pass

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        pass


@contextlib.contextmanager
def _translated(what: str) -> Iterator[None]:
    """huggingface_hub's errors as ours. A gated repository is a kind of missing one to it, so the order matters."""
    from huggingface_hub import errors

    # The base of every HTTP error, of whichever httpx the client brings.
    transport_error = cast("type[Exception]", errors.HfHubHTTPError.__bases__[0])
    try:
        with disk_errors(what):
            yield
    except errors.HFValidationError as error:
        raise MalformedReferenceError(f"{what}: {error}") from error
    except (errors.GatedRepoError, errors.DisabledRepoError) as error:
        raise AccessDeniedError(f"{what} is gated: its owner has not granted access") from error
    except errors.RepositoryNotFoundError as error:
        raise NotFoundError(f"the hub has no {what}, or does not show it without a token that may read it") from error
    except (errors.RevisionNotFoundError, errors.RemoteEntryNotFoundError) as error:
        raise NotFoundError(f"the hub has no {what}") from error
    except errors.HfHubHTTPError as error:
        status = error.response.status_code
        if status in (401, 403):
            raise AccessDeniedError(f"the hub denies access to {what}") from error
        raise HubUnavailableError(f"the hub answered {status} to a request for {what}") from error
    except errors.OfflineModeIsEnabled as error:
        raise HubUnavailableError(f"{what} is not in the hub's cache, and HF_HUB_OFFLINE is set") from error
    except errors.LocalEntryNotFoundError as error:
        raise HubUnavailableError(f"the hub does not answer, and {what} is not in its cache") from error
    except transport_error as error:
        raise HubUnavailableError(f"the hub does not answer a request for {what}: {error}") from error
