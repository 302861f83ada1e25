"""Some of a model's files without the rest: chosen by their names, fetched like all else, and exported.

The store gets their blobs and nothing that speaks of the artifact: no manifest, no tag, no receipt. So it never claims
to have what is not whole, and a prune takes the blobs as what no tag needs.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from modelpack import transfer
from modelpack.errors import MissingFileError, UnsupportedError
from modelpack.formats import Model, ModelFile
from modelpack.oci.digest import Digest
from modelpack.oci.manifest import Descriptor, Manifest
from modelpack.oci.target import BlobStream, Source, Target
from modelpack.progress import SILENT, Progress
from modelpack.transfer import CopyResult

_MAX_NAMED = 20


@dataclass(frozen=True, slots=True)
class Selection:
    """Which files of a model are wanted, and which are not."""

    chosen: tuple[ModelFile, ...]
    left: tuple[ModelFile, ...]

    @property
    def digests(self) -> dict[str, Digest]:
        """The content of the chosen ones, by their names, which are safe."""
        return {file.name: file.digest for file in self.chosen}


def select(model: Model, *, include: Sequence[str] = (), exclude: Sequence[str] = ()) -> Selection:
    """The files that any of ``include`` fits, or all where that is empty, but those that any of ``exclude`` fits.

    The patterns are globs over whole names in exactly this case, as huggingface_hub's ``filter_repo_objects`` has
    them. Raises MissingFileError where that leaves none, UnsupportedError for files inside archives.
    """
    if model.packed:
        raise UnsupportedError("the files of this model are inside archives: pull it without --output, then unpack it")

    def is_wanted(name: str) -> bool:
        fits = [fnmatchcase(name, pattern) for pattern in include]
        return (any(fits) or not include) and not any(fnmatchcase(name, pattern) for pattern in exclude)

    chosen = tuple(file for file in model.files if is_wanted(file.name))
    if not chosen:
        asked = [f"--include {pattern!r}" for pattern in include] + [f"--exclude {pattern!r}" for pattern in exclude]
        names = [file.name for file in model.files]
        rest = f" and {len(names) - _MAX_NAMED} others" if len(names) > _MAX_NAMED else ""
        raise MissingFileError(
            f"{' '.join(asked):.300} leaves no file of {', '.join(names[:_MAX_NAMED]) or 'none'}{rest}"
        )
    return Selection(chosen, tuple(file for file in model.files if file not in chosen))


def fetch_files(
    source: Source,
    target: Target,
    manifest: Manifest,
    files: Sequence[ModelFile],
    *,
    jobs: int | None = None,
    progress: Progress = SILENT,
) -> CopyResult:
    """Copy the blobs of these files of an artifact, and nothing else; an interrupted copy goes on where it was.

    Raises what ``transfer.copy_blobs`` raises.
    """
    wanted = {file.digest for file in files}
    blobs = {layer.digest: layer for layer in manifest.layers if layer.digest in wanted}
    return transfer.copy_blobs(source, target, manifest.descriptor, list(blobs.values()), jobs=jobs, progress=progress)


@dataclass(frozen=True, slots=True)
class Arrived:
    """A Source: an artifact of which some blobs have come, read from ``here``, and all else from ``there``."""

    here: Target
    there: Source

    def resolve(self, selector: str) -> Descriptor:
        return self.there.resolve(selector)

    def fetch_manifest(self, descriptor: Descriptor) -> Manifest:
        return self.there.fetch_manifest(descriptor)

    def read_blob(self, descriptor: Descriptor, *, offset: int = 0) -> BlobStream:
        place = self.here if self.here.has_blob(descriptor) else self.there
        return place.read_blob(descriptor, offset=offset)

    def list_referrers(self, subject: Digest) -> list[Descriptor]:
        return self.there.list_referrers(subject)

    def list_tags(self) -> list[str]:
        return self.there.list_tags()
