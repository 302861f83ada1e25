"""Models whose layers are archives: their files become blobs of their own, beside the artifact they came from.

The artifact stays what was signed; what is unpacked hangs on it under a tag of its digest, is never pushed, and goes
when it goes. A receipt says which unpacked manifests this store made itself: what somebody else pushed under that
tag counts for nothing.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from modelpack import compression, tar
from modelpack.errors import InvalidContentError, InvalidGGUFError, NotFoundError, UnsupportedError
from modelpack.formats import FileKind, Model, ModelFile, PackedLayer, codec_named
from modelpack.formats.facts import with_facts
from modelpack.formats.model import MAX_CONFIG_SIZE, flat_name, kind_of_name
from modelpack.gguf_shards import read_whole_header
from modelpack.oci.digest import Digest
from modelpack.oci.manifest import Descriptor
from modelpack.oci.target import Source, read_whole
from modelpack.progress import SILENT, Progress
from modelpack.store import Store, StoreRepository, check_space, disk_errors

MAX_FILES = 1_000
MAX_SIZE = 4 << 40

_RECORD = "unpacked_from"
_WHITEOUT = ".wh."


@dataclass(frozen=True, slots=True)
class Unpacked:
    """A model with all its files as blobs, and the manifest that keeps them."""

    descriptor: Descriptor
    model: Model


def unpack(
    store: Store,
    repository: StoreRepository,
    descriptor: Descriptor,
    model: Model,
    *,
    max_size: int = MAX_SIZE,
    progress: Progress = SILENT,
) -> Unpacked:
    """Unpack the packed layers of a stored artifact; what was unpacked before is kept.

    Only regular files with safe names leave an archive. Raises InvalidContentError for hostile or damaged layers and
    for more than ``max_size`` bytes, UnsupportedError for zstd where nothing reads it, InsufficientDiskError.
    """
    if not model.packed:
        raise UnsupportedError(f"{descriptor.digest} is not packed: its files are used in place")
    known = find_unpacked(store, repository, descriptor)
    if known:
        return known
    files = list(model.files)
    for layer in model.packed:
        left = max_size - sum(file.size for file in files)
        with progress.step(f"unpacking {layer.digest.short}", total=layer.size):
            files += _unpack_layer(store, layer, left)
    if not any(file.kind is FileKind.WEIGHT for file in files):
        raise InvalidContentError(f"no weights are packed in {descriptor.digest}")
    whole = replace(model, files=tuple(files), packed=())
    encoded = codec_named("cncf").encode(_with_facts(store, whole))
    store.write_small(encoded.config, encoded.manifest.blobs[0].media_type)
    made = repository.put_manifest(encoded.manifest, tag=_tag(descriptor))
    # The same files in another packing are unpacked to the same manifest.
    store.put_receipt(made.digest, {_RECORD: sorted({*_packings(store, made.digest), str(descriptor.digest)})})
    return Unpacked(made, whole)


def find_unpacked(store: Store, source: Source, descriptor: Descriptor) -> Unpacked | None:
    """What ``unpack`` made of this artifact in this store; None when it did not, or all of it is not here any more."""
    try:
        made = source.resolve(_tag(descriptor))
        manifest = source.fetch_manifest(made)
    except NotFoundError:
        return None
    if str(descriptor.digest) not in _packings(store, made.digest) or manifest.config is None:
        return None
    if any(store.blobs.size(blob.digest) != blob.size for blob in manifest.blobs):
        return None
    config = read_whole(source, manifest.config, limit=MAX_CONFIG_SIZE)
    return Unpacked(made, codec_named("cncf").decode(manifest, config))


def _packings(store: Store, made: Digest) -> list[str]:
    """The artifacts that this store has unpacked to a manifest."""
    known = (store.receipt(made) or {}).get(_RECORD)
    return [digest for digest in known if isinstance(digest, str)] if isinstance(known, list) else []


def _tag(descriptor: Descriptor) -> str:
    # In the form of cosign's tags, which the store takes for part of what they are attached to.
    return f"sha256-{descriptor.digest.hex}.unpacked"


def _unpack_layer(store: Store, layer: PackedLayer, limit: int) -> Iterator[ModelFile]:
    with store.workspace() as folder, store.blobs.read(layer.digest) as chunks:
        plain = compression.decompressed(chunks, layer.compression, limit=limit + (limit >> 3) + tar.BLOCK * 4096)
        if not layer.is_tar:
            yield _keep(store, folder, layer.name or "file", layer.kind or FileKind.DOC, plain, limit=limit)
            return
        stream = tar.ChunkStream(plain)
        count = 0
        for member in tar.read_members(stream):
            if not _belongs(layer, member):
                continue
            count, limit = count + 1, limit - member.size
            if count > MAX_FILES or limit < 0:
                raise InvalidContentError(f"layer {layer.digest} unpacks to more than is allowed")
            check_space(folder, member.size)
            # An archive of weights may hold their licence as well.
            kind = kind_of_name(member.name) if layer.kind in (None, FileKind.WEIGHT) else layer.kind
            yield _keep(
                store, folder, flat_name(member.name, kind), kind, tar.content(stream, member), limit=member.size
            )


def _belongs(layer: PackedLayer, member: tar.Member) -> bool:
    """Whether an entry is a file of the model. Raises InvalidContentError for what an archive of files may not hold."""
    if layer.folder is None:
        if member.kind not in (tar.Kind.FILE, tar.Kind.FOLDER):
            raise InvalidContentError(f"layer {layer.digest} holds {member.name!r:.120}, neither a file nor a folder")
        return member.kind is tar.Kind.FILE
    if not member.name.startswith(f"{layer.folder}/"):
        return False
    if member.name.rpartition("/")[2].startswith(_WHITEOUT):
        raise InvalidContentError(f"layer {layer.digest} takes files of another layer away; such images are not read")
    # Links beside the files (RamaLama's model.file) are names for what is there anyway. None is followed.
    return member.kind is tar.Kind.FILE


def _keep(store: Store, folder: Path, name: str, kind: FileKind, content: Iterator[bytes], *, limit: int) -> ModelFile:
    path, size = folder / "file", 0
    with disk_errors(path), path.open("xb") as file:
        for chunk in content:
            size += len(chunk)
            if size > limit:
                raise InvalidContentError(f"{name} unpacks to more than {limit} bytes")
            file.write(chunk)
    blob = store.import_file(path, "application/octet-stream", adopt=True)
    return ModelFile(name, kind, blob.digest, blob.size)


def _with_facts(store: Store, model: Model) -> Model:
    """The model with what its weights say where the artifact said nothing."""
    try:
        return with_facts(model, read_whole_header(store.weights_path([file.digest for file in model.weights])))
    except InvalidGGUFError:
        return model
