"""One GGUF file as several: as llama.cpp's own tool cuts it, never larger than asked, and never a mix of two models."""

import hashlib
import json
import os
import shutil
import struct
from pathlib import Path

import gguf
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from modelpack.convert import Checkpoint, plan_conversion, run_conversion
from modelpack.errors import InsufficientDiskError, InvalidGGUFError, InvalidInputError, NotFoundError
from modelpack.gguf_header import read_header
from modelpack.gguf_shards import plan_shards, read_headers, read_whole_header, shard_name, shard_paths, write_shards

DATA = Path(__file__).parent.parent / "data"


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("gguf") / "tiny.gguf"
    run_conversion(plan_conversion(Checkpoint.open(DATA / "tiny-llama"), name="tiny-llama"), path)
    return path


def split(source: Path, limit: int, stem: Path) -> tuple[Path, ...]:
    return write_shards(source, plan_shards(source, limit), stem)


def test_the_bytes_are_those_of_llama_gguf_split(tiny: Path, tmp_path: Path) -> None:
    recorded = json.loads((DATA / "quantize/records.json").read_text())["shards"]

    shards = split(tiny, 1_030_000, tmp_path / "shards")

    assert {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in shards} == recorded


def test_together_the_shards_say_what_the_whole_said(tiny: Path, tmp_path: Path) -> None:
    whole = read_header(tiny)

    first, *_ = shards = split(tiny, 300_000, tmp_path / "m")

    together = read_whole_header(first)
    assert shard_paths(first) == shards
    assert together.parameters == whole.parameters
    assert [tensor.name for tensor in together.tensors] == [tensor.name for tensor in whole.tensors]
    assert {key: together.metadata[key] for key in whole.metadata} == dict(whole.metadata)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    rows=st.lists(st.integers(1, 40), min_size=1, max_size=12),
    alignment=st.sampled_from([8, 32, 64, 4096]),
    limit=st.integers(1_000, 30_000),
)
def test_no_shard_is_larger_than_asked_and_no_byte_is_lost(
    rows: list[int], alignment: int, limit: int, tmp_path: Path
) -> None:
    folder = tmp_path / os.urandom(4).hex()
    folder.mkdir()
    writer = gguf.GGUFWriter(folder / "whole.gguf", "llama")
    writer.add_custom_alignment(alignment)
    weights = {f"t{number}": np.full((count, 33), number, "<f4") for number, count in enumerate(rows)}
    for name, values in weights.items():
        writer.add_tensor(name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()

    try:
        shards = plan_shards(folder / "whole.gguf", limit)
    except InvalidInputError:
        assert max(values.nbytes for values in weights.values()) + 3 * alignment + 200 > limit
        return
    if len(shards) == 1:
        assert (folder / "whole.gguf").stat().st_size <= limit
        return
    paths = write_shards(folder / "whole.gguf", shards, folder / "m")

    assert [path.stat().st_size for path in paths] == [shard.size for shard in shards]
    assert max(shard.size for shard in shards) <= limit
    found = {tensor.name: tensor.data for path in paths for tensor in gguf.GGUFReader(path).tensors}
    assert list(found) == list(weights)
    assert all((found[name].reshape(values.shape) == values).all() for name, values in weights.items())


def test_a_tensor_larger_than_the_limit_is_named(tiny: Path) -> None:
    with pytest.raises(InvalidInputError, match=r"token_embd\.weight alone takes 262144 bytes"):
        plan_shards(tiny, 200_000)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="has no device that is always full")
def test_a_disk_that_fills_up_while_shards_are_written_is_called_so(tiny: Path, tmp_path: Path) -> None:
    planned = plan_shards(tiny, 1_000_000)
    (tmp_path / shard_name("m", 2, len(planned))).symlink_to("/dev/full")

    with pytest.raises(InsufficientDiskError, match=r"no space left to write .*m-00002-of-00002\.gguf"):
        write_shards(tiny, planned, tmp_path / "m")


def test_a_shard_is_not_split_again(tiny: Path, tmp_path: Path) -> None:
    first, *_ = split(tiny, 1_000_000, tmp_path / "m")
    with pytest.raises(InvalidInputError, match="not split again"):
        plan_shards(first, 300_000)


def test_what_does_not_belong_together_is_refused_before_llama_cpp_sees_it(tiny: Path, tmp_path: Path) -> None:
    first, second, *_ = split(tiny, 1_000_000, tmp_path / "m")

    with pytest.raises(InvalidGGUFError, match="not the first of its 2 shards"):
        read_headers(second)
    renamed = shutil.copyfile(first, tmp_path / "renamed.gguf")
    with pytest.raises(InvalidGGUFError, match="one of 2 shards, which its name does not say"):
        read_headers(renamed)

    kept = second.read_bytes()
    shutil.copyfile(first, second)
    with pytest.raises(InvalidGGUFError, match="belongs to other shards"):
        read_headers(first)
    second.unlink()
    with pytest.raises(NotFoundError, match=r"m-00002-of-00002\.gguf"):
        read_headers(first)
    second.write_bytes(kept[:200])
    with pytest.raises(InvalidGGUFError):
        read_headers(first)


def test_a_shard_of_another_model_is_refused(tiny: Path, tmp_path: Path) -> None:
    first, *_ = split(tiny, 1_000_000, tmp_path / "a")
    other = split(tiny, 1_300_000, tmp_path / "b")
    assert len(other) == 2

    shutil.copyfile(other[1], tmp_path / "a-00002-of-00002.gguf")

    with pytest.raises(InvalidGGUFError, match="do not hold the tensors that they claim"):
        read_headers(first)


def test_what_llama_cpp_merged_is_one_file_again(tiny: Path, tmp_path: Path) -> None:
    first, second = split(tiny, 1_000_000, tmp_path / "m")
    marks = (b"split.count" + struct.pack("<IH", 2, 2), b"split.count" + struct.pack("<IH", 2, 0))
    merged = tmp_path / "merged.gguf"
    merged.write_bytes(first.read_bytes().replace(*marks))
    second.unlink()

    assert len(read_headers(merged)) == 1
    assert len(plan_shards(merged, 2_000_000)) == 1
    with pytest.raises(InvalidInputError, match="not split again"):
        plan_shards(merged, 300_000)


def test_more_tensors_than_any_model_has_are_refused_however_many_shards_share_them(tiny: Path, tmp_path: Path) -> None:
    first, *_ = split(tiny, 1_000_000, tmp_path / "m")
    count = len(read_header(tiny).tensors)
    for claimed in (1 << 20, -1, count - 1):
        old, new = (b"split.tensors.count" + struct.pack("<Ii", 5, number) for number in (count, claimed))
        kept = first.read_bytes()
        first.write_bytes(kept.replace(old, new))
        with pytest.raises(InvalidGGUFError, match="claim"):
            read_headers(first)
        first.write_bytes(kept)
