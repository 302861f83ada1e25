"""What may be opened as a checkpoint, and what it says about itself."""

import contextlib
import json
import os
import shutil
import struct
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modelpack.convert import Checkpoint, plan_conversion
from modelpack.convert.model_card import parse_model_card
from modelpack.convert.safetensors import read_tensors
from modelpack.errors import (
    InvalidCheckpointError,
    ModelpackError,
    NotFoundError,
    UnknownArchitectureError,
    UnsupportedError,
)

TINY = Path(__file__).parent.parent.parent / "data" / "tiny-llama"


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    return Path(shutil.copytree(TINY, tmp_path / "tiny-llama"))


def safetensors(header: object, data: bytes = b"") -> bytes:
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(raw)) + raw + data


def entry(dtype: str = "F32", shape: object = (2,), offsets: object = (0, 8)) -> dict[str, object]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


def test_a_checkpoint_knows_itself() -> None:
    checkpoint = Checkpoint.open(TINY)

    assert (checkpoint.name, checkpoint.architecture) == ("tiny-llama", "LlamaForCausalLM")
    assert [path.name for path in checkpoint.tokenizer_files] == [
        "tokenizer.model",
        "tokenizer.json",
        "tokenizer_config.json",
        "special_tokens_map.json",
    ]
    assert checkpoint.license_file == TINY / "LICENSE"
    assert checkpoint.card_file == TINY / "README.md"
    assert (checkpoint.card.license, checkpoint.card.tags) == ("apache-2.0", ("test-fixture", "llama"))
    assert len(checkpoint.tensors) == 20


def test_a_checkpoint_without_card_and_licence_is_one_too(tiny: Path) -> None:
    (tiny / "README.md").unlink()
    (tiny / "LICENSE").unlink()
    checkpoint = Checkpoint.open(tiny)

    assert (checkpoint.license_file, checkpoint.card_file, checkpoint.card.license) == (None, None, None)
    assert checkpoint.card.base_models == ()


def test_a_folder_that_is_no_checkpoint_is_refused(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError):
        Checkpoint.open(tmp_path / "nothing")
    with pytest.raises(InvalidCheckpointError, match=r"no config\.json"):
        Checkpoint.open(tmp_path)


def test_pickled_weights_are_refused(tiny: Path) -> None:
    (tiny / "model.safetensors").rename(tiny / "pytorch_model.bin")

    with pytest.raises(UnsupportedError, match="pickled"):
        Checkpoint.open(tiny)


def test_quantized_weights_are_refused(tiny: Path) -> None:
    config = json.loads((tiny / "config.json").read_text())
    (tiny / "config.json").write_text(json.dumps(config | {"quantization_config": {"quant_method": "gptq"}}))

    with pytest.raises(UnsupportedError, match="quantized already"):
        Checkpoint.open(tiny)


def test_code_of_a_checkpoints_own_is_never_run(tiny: Path) -> None:
    config = json.loads((tiny / "config.json").read_text())
    config |= {"auto_map": {"AutoModel": "modeling_evil.Evil"}}
    (tiny / "modeling_evil.py").write_text("raise SystemExit")
    (tiny / "config.json").write_text(json.dumps(config))
    checkpoint = Checkpoint.open(tiny)

    assert checkpoint.asks_for_code
    assert plan_conversion(checkpoint).tensor_count == 20  # known without it
    (tiny / "config.json").write_text(json.dumps(config | {"architectures": ["EvilForCausalLM"]}))
    with pytest.raises(UnknownArchitectureError, match=r"'EvilForCausalLM'.*code of its own, which is never run"):
        plan_conversion(Checkpoint.open(tiny))


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"pooling_mode_mean_tokens": True}, "mean"),
        ({"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}, "cls"),
        ({"pooling_mode_lasttoken": True}, "last"),
        ({"pooling_mode": "lasttoken"}, "last"),
    ],
)
def test_pooling_is_read_from_where_sentence_transformers_keeps_it(tiny: Path, settings: dict, expected: str) -> None:
    assert Checkpoint.open(tiny).pooling is None
    modules = [{"path": "", "type": "models.Transformer"}, {"path": "1_Pooling", "type": "models.Pooling"}]
    (tiny / "modules.json").write_text(json.dumps(modules))
    (tiny / "1_Pooling").mkdir()
    (tiny / "1_Pooling" / "config.json").write_text(json.dumps(settings))
    assert Checkpoint.open(tiny).pooling == expected

    (tiny / "1_Pooling" / "config.json").write_text("{}")
    with pytest.raises(UnsupportedError, match="pools in a way"):
        _ = Checkpoint.open(tiny).pooling
    (tiny / "modules.json").write_text(json.dumps([{"path": "../x", "type": "models.Pooling"}]))
    with pytest.raises(InvalidCheckpointError, match="not one of its own"):
        _ = Checkpoint.open(tiny).pooling


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "README.md"])
def test_a_link_that_leads_out_of_the_folder_is_refused(tiny: Path, tmp_path: Path, name: str) -> None:
    outside = tmp_path / "outside"
    (tiny / name).rename(outside)
    (tiny / name).symlink_to(outside)

    with pytest.raises(InvalidCheckpointError, match="leads out of the checkpoint"):
        Checkpoint.open(tiny)


def test_a_snapshot_in_the_hubs_cache_may_link_to_its_blobs(tmp_path: Path) -> None:
    snapshot = tmp_path / "models--org--tiny" / "snapshots" / "c0ffee"
    blobs = tmp_path / "models--org--tiny" / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    for path in TINY.iterdir():
        shutil.copy(path, blobs / f"blob-{path.name}")
        (snapshot / path.name).symlink_to(Path("../../blobs") / f"blob-{path.name}")

    assert len(Checkpoint.open(snapshot).tensors) == 20


def test_a_fifo_is_not_waited_for(tiny: Path) -> None:
    (tiny / "README.md").unlink()
    os.mkfifo(tiny / "README.md")

    with pytest.raises(InvalidCheckpointError, match="not a file"):
        Checkpoint.open(tiny)


@pytest.mark.parametrize("name", ["../model.safetensors", "a/b.safetensors", ".hidden", "..\\x"])
def test_an_index_that_names_files_elsewhere_is_refused(tiny: Path, name: str) -> None:
    (tiny / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"t": name}}))

    with pytest.raises(InvalidCheckpointError, match="not shards of this checkpoint"):
        Checkpoint.open(tiny)


def test_an_index_and_its_files_must_agree(tiny: Path) -> None:
    index = tiny / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"t": "model-00002-of-00002.safetensors"}}))
    with pytest.raises(InvalidCheckpointError, match="lacks model-00002-of-00002"):
        Checkpoint.open(tiny)

    index.write_text(json.dumps({"weight_map": {"t": "model.safetensors"}}))
    with pytest.raises(InvalidCheckpointError, match="disagree about"):
        Checkpoint.open(tiny)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "claims a header of 0 bytes and has 0"),
        (struct.pack("<Q", 1 << 60) + b"{}", "claims a header of 1152921504606846976 bytes"),
        (safetensors(b"[]"), "not a JSON object"),
        (safetensors(b'{"a":1,"a":2}'), "repeats a key"),
        (safetensors(b"[" * 100_000), "nested deeper"),
        (safetensors({"t": 1}), "not described by an object"),
        (safetensors({"t": {"dtype": "F32"}}), "lacks a proper dtype"),
        (safetensors({"t": entry(shape=[-2])}, bytes(8)), "lacks a proper dtype"),
        (safetensors({"t": entry(shape=[True, 2])}, bytes(8)), "lacks a proper dtype"),
        (safetensors({"t": entry(offsets=[8, 0])}, bytes(8)), "impossible offsets"),
        (safetensors({"t": entry(shape=[1] * 9 + [2])}, bytes(8)), "impossible offsets or dimensions"),
        (safetensors({"t": entry(shape=[3])}, bytes(8)), "8 bytes for the shape"),
        (safetensors({"t": entry(shape=[1 << 62, 4, 2])}, bytes(8)), "8 bytes for the shape"),
        (safetensors({"t": entry(offsets=[8, 16])}, bytes(8)), "ends 8 bytes before"),
        (safetensors({"a": entry(), "b": entry(offsets=[4, 12])}, bytes(12)), "'b' overlaps another"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_broken_safetensors_header_is_refused(tmp_path: Path, content: bytes, reason: str) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)

    with pytest.raises(InvalidCheckpointError, match=reason):
        read_tensors(path)


def test_an_unknown_element_type_is_named(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(safetensors({"t": entry(dtype="F4")}, bytes(8)))

    with pytest.raises(UnsupportedError, match="'F4'"):
        read_tensors(path)


@settings(max_examples=200, deadline=None)
@given(data=st.binary(max_size=200), length=st.integers(0, 300))
def test_no_bytes_get_past_the_safetensors_reader_as_another_error(
    tmp_path_factory: pytest.TempPathFactory, data: bytes, length: int
) -> None:
    path = tmp_path_factory.getbasetemp() / "any.safetensors"
    path.write_bytes(struct.pack("<Q", length) + b'{"t":' + data)
    with contextlib.suppress(ModelpackError):
        read_tensors(path)


def test_a_card_is_read_as_texts() -> None:
    card = parse_model_card(
        "---\nlicense: [mit, apache-2.0]\nbase_model:\n- a/b\nlanguage:\n- no\nversion: 1.10\nempty:\n"
        "model-index: [{name: x}]\n---\n# Title\n"
    )

    assert (card.license, card.base_models) == ("mit", ("a/b",))
    assert (card.fields["language"], card.fields["version"]) == (["no"], "1.10")
    assert "empty" not in card.fields
    assert "model-index" not in card.fields


@pytest.mark.parametrize(
    "text",
    [
        "",
        "# no front matter",
        "---\nlicense: mit\n",
        "---\n- a\n---\n",
        "---\n[\n---\n",
        "---\n" + "[" * 5000 + "\n---\n",
    ],
)
def test_a_card_that_does_not_parse_says_nothing(text: str) -> None:
    assert parse_model_card(text).fields == {}


def test_a_card_of_aliases_does_not_explode() -> None:
    bomb = "\n".join(f"k{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9) if n else 'lol'}]" for n in range(12))

    assert list(parse_model_card(f"---\n{bomb}\n---\n").fields) == ["k0"]


def test_a_file_that_was_parsed_is_kept_until_it_is_let_go(tmp_path: Path) -> None:
    directory = Path(shutil.copytree(TINY, tmp_path / "tiny"))
    checkpoint = Checkpoint.open(directory)
    first = checkpoint.read_json("tokenizer.json")

    assert first is not None
    assert checkpoint.read_json("tokenizer.json") is first
    plan_conversion(checkpoint)
    (directory / "tokenizer.json").write_text("{}")
    assert checkpoint.read_json("tokenizer.json") == {}
