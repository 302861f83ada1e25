"""A checkpoint: the files of one revision of a Hugging Face model repository, in a directory.

Reads headers and small files, each within a limit, and never code or pickle. What a file may not do: be a link that
leads out of the directory, or ask for code of its own to be run.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from modelpack.convert.model_card import ModelCard, parse_model_card
from modelpack.convert.safetensors import StoredTensor, read_tensors
from modelpack.errors import InvalidCheckpointError, InvalidContentError, NotFoundError, UnsupportedError
from modelpack.oci import strict_json

MAX_CONFIG_SIZE = 4 << 20
MAX_TOKENIZER_SIZE = 96 << 20  # the largest published ones have some 35
MAX_TEXT_SIZE = 4 << 20
MAX_INDEX_SIZE = 64 << 20
MAX_SHARDS = 4096

MAX_CHAT_TEMPLATES = 64

_INDEX = "model.safetensors.index.json"
_FOLDER = re.compile(r"[A-Za-z0-9_-]{1,64}")
_POOLING = {"pooling_mode_mean_tokens": "mean", "pooling_mode_cls_token": "cls", "pooling_mode_lasttoken": "lasttoken"}
_PICKLE_SUFFIXES = (".bin", ".ckpt", ".pkl", ".pt", ".pth")


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """An opened checkpoint. ``tensors`` come in the order of the shards' names, by name within each."""

    directory: Path
    config: Mapping[str, Any]
    tensors: Mapping[str, StoredTensor]
    card: ModelCard
    _parsed: dict[str, dict[str, Any]] = field(default_factory=dict, repr=False, compare=False)

    @classmethod
    def open(cls, directory: Path) -> "Checkpoint":
        """Read config.json, the model card and the safetensors headers; no weights.

        Raises NotFoundError, InvalidCheckpointError, and UnsupportedError for pickled weights and for quantized ones,
        but for FP8 with scales, which is as good as what it was made from.
        """
        if not directory.is_dir():
            raise NotFoundError(f"there is no checkpoint directory at {directory}")
        files = _Files(directory)
        config = files.read_json("config.json", MAX_CONFIG_SIZE)
        if config is None:
            raise InvalidCheckpointError(f"{directory} has no config.json")
        scheme = config.get("quantization_config")
        if scheme and not _is_block_scaled(scheme):
            raise UnsupportedError(f"the weights in {directory} are quantized already; convert the original checkpoint")
        card = files.read_text("README.md", MAX_TEXT_SIZE)
        return cls(directory, config, files.read_all_tensors(), parse_model_card(card or ""))

    @property
    def name(self) -> str:
        """What the checkpoint calls itself; its directory's name where it is silent."""
        for key in ("name", "model_name"):
            name = self.card.fields.get(key)
            if isinstance(name, str):
                return name
        name = self.config.get("_name_or_path")
        if isinstance(name, str) and name and name.count("/") <= 1:
            return name.rpartition("/")[2]
        return self.directory.resolve().name

    @property
    def architecture(self) -> str:
        """The class that the checkpoint names first, for example ``LlamaForCausalLM``."""
        names = self.config.get("architectures")
        if not isinstance(names, list) or not names or not isinstance(names[0], str):
            raise InvalidCheckpointError(f"the config.json of {self.directory} names no architecture")
        return names[0]

    @property
    def asks_for_code(self) -> bool:
        """Whether the repository brings code of its own that transformers would run. It is never run here."""
        return bool(self.config.get("auto_map"))

    @property
    def pooling(self) -> str | None:
        """How a sentence encoder makes one vector of many: ``mean``, ``cls`` or ``last``; None for other models.

        Read from where sentence-transformers keeps it. Raises UnsupportedError for a way that llama.cpp lacks.
        """
        modules = _Files(self.directory).read_json_list("modules.json", MAX_CONFIG_SIZE) or []
        for module in modules:
            path, kind = module.get("path"), module.get("type")
            if isinstance(path, str) and isinstance(kind, str) and kind.endswith("Pooling"):
                break
        else:
            return None
        if not _FOLDER.fullmatch(path):
            raise InvalidCheckpointError(f"modules.json names the folder {path[:100]!r}, which is not one of its own")
        settings = self.read_json(f"{path}/config.json") or {}
        for key, name in _POOLING.items():
            if settings.get(key) is True or settings.get("pooling_mode") == name:
                return name.removesuffix("token")
        raise UnsupportedError(f"{path}/config.json pools in a way that llama.cpp does not know")

    @property
    def additional_chat_templates(self) -> dict[str, str]:
        """By name, what lies in the folder of that name beside chat_template.jinja."""
        folder = self.directory / "additional_chat_templates"
        names = sorted(path.name for path in folder.glob("*.jinja")) if folder.is_dir() else []
        if len(names) > MAX_CHAT_TEMPLATES:
            raise InvalidCheckpointError(f"{folder} has more than {MAX_CHAT_TEMPLATES} templates")
        texts = {name: self.read_text(f"additional_chat_templates/{name}") for name in names}
        return {name.removesuffix(".jinja"): text for name, text in texts.items() if text is not None}

    @property
    def tokenizer_files(self) -> tuple[Path, ...]:
        names = (
            "tokenizer.model",
            "sentencepiece.bpe.model",
            "spiece.model",
            "tokenizer.json",
            "tokenizer_config.json",
            "special_tokens_map.json",
        )
        return tuple(path for name in names if (path := _Files(self.directory).find(name)))

    @property
    def other_tokenizer_files(self) -> tuple[str, ...]:
        """Names of files that hold a tokenizer in a form that is not read."""
        names = ("tekken.json", "tiktoken.model", "tokenizer.model", "vocab.json", "merges.txt", "vocab.txt")
        found = [path.name for path in sorted(self.directory.glob("*.tiktoken"))[:1]]
        return (*(name for name in names if (self.directory / name).is_file()), *found)

    @property
    def license_file(self) -> Path | None:
        """The licence's text, if the repository brings it."""
        return _Files(self.directory).find_first("LICENSE", "LICENCE", "COPYING")

    @property
    def card_file(self) -> Path | None:
        return _Files(self.directory).find("README.md")

    def read_json(self, name: str) -> dict[str, Any] | None:
        """One of the tokenizer's files or another small one, parsed, not to be changed; None where there is none.

        tokenizer.json, which may be large and is asked for by many, is parsed once until ``forget``.
        """
        if name in self._parsed:
            return self._parsed[name]
        document = _Files(self.directory).read_json(name, MAX_TOKENIZER_SIZE)
        if name == "tokenizer.json" and document is not None:
            self._parsed[name] = document
        return document

    def forget(self) -> None:
        """Let go of what was parsed: a large vocabulary takes more memory than its conversion."""
        self._parsed.clear()

    def read_text(self, name: str) -> str | None:
        return _Files(self.directory).read_text(name, MAX_TEXT_SIZE)

    def read_bytes(self, name: str) -> bytes | None:
        return _Files(self.directory).read_bytes(name, MAX_TOKENIZER_SIZE)


@dataclass(frozen=True, slots=True)
class _Files:
    """The directory, as far as its files may be opened."""

    directory: Path

    def find(self, name: str) -> Path | None:
        path = self.directory / name
        if not path.exists():
            return None
        target = path.resolve()
        if not any(target.is_relative_to(root) for root in self._roots()):
            raise InvalidCheckpointError(f"{path} is a link that leads out of the checkpoint")
        if not target.is_file():
            raise InvalidCheckpointError(f"{path} is not a file")
        return path

    def find_first(self, *stems: str) -> Path | None:
        for path in self._list():
            if path.name.upper().startswith(stems) and path.is_file():
                return self.find(path.name)
        return None

    def read_bytes(self, name: str, limit: int) -> bytes | None:
        path = self.find(name)
        if path is None:
            return None
        with path.open("rb") as file:
            content = file.read(limit + 1)
        if len(content) > limit:
            raise InvalidCheckpointError(f"{path} is larger than {limit >> 20} MiB")
        return content

    def read_text(self, name: str, limit: int) -> str | None:
        content = self.read_bytes(name, limit)
        try:
            return None if content is None else content.decode("utf-8")
        except UnicodeDecodeError as error:
            raise InvalidCheckpointError(f"{self.directory / name} is not UTF-8") from error

    def read_json(self, name: str, limit: int) -> dict[str, Any] | None:
        content = self.read_bytes(name, limit)
        try:
            return None if content is None else strict_json.parse_object(content, what=str(self.directory / name))
        except InvalidContentError as error:
            raise InvalidCheckpointError(str(error)) from error

    def read_json_list(self, name: str, limit: int) -> list[dict[str, Any]] | None:
        content = self.read_bytes(name, limit)
        try:
            # strict_json reads objects only.
            wrapped = None if content is None else b'{"list":' + content + b"}"
            document = {} if wrapped is None else strict_json.parse_object(wrapped, what=str(self.directory / name))
        except InvalidContentError as error:
            raise InvalidCheckpointError(str(error)) from error
        value = document.get("list", [])
        return [entry for entry in value if isinstance(entry, dict)] if isinstance(value, list) else []

    def read_all_tensors(self) -> dict[str, StoredTensor]:
        weight_map = self._read_index()
        names = sorted(set(weight_map.values())) if weight_map is not None else self._list_shards()
        tensors: dict[str, StoredTensor] = {}
        for name in names:
            path = self.find(name)
            if path is None:
                raise InvalidCheckpointError(f"{self.directory} lacks {name}, which {_INDEX} names")
            for tensor, stored in read_tensors(path).items():
                if tensor in tensors:
                    raise InvalidCheckpointError(f"{tensor!r} is both in {tensors[tensor].path.name} and in {name}")
                tensors[tensor] = stored
        if weight_map is not None and (difference := weight_map.keys() ^ tensors.keys()):
            raise InvalidCheckpointError(f"{_INDEX} and its files disagree about {min(difference)!r}")
        return tensors

    def _read_index(self) -> dict[str, str] | None:
        index = self.read_json(_INDEX, MAX_INDEX_SIZE)
        if index is None:
            return None
        weight_map = index.get("weight_map")
        if not isinstance(weight_map, dict) or not all(isinstance(name, str) for name in weight_map.values()):
            raise InvalidCheckpointError(f"{_INDEX} has no proper weight_map")
        names = set(weight_map.values())
        if len(names) > MAX_SHARDS or any("/" in name or "\\" in name or name.startswith(".") for name in names):
            raise InvalidCheckpointError(f"{_INDEX} names files that are not shards of this checkpoint")
        return weight_map

    def _list_shards(self) -> list[str]:
        names = [path.name for path in self._list()]
        shards = [name for name in names if name.startswith("model") and name.endswith(".safetensors")]
        if not shards and any(name.endswith(_PICKLE_SUFFIXES) for name in names):
            raise UnsupportedError(
                f"the weights in {self.directory} are pickled, which can run code; only safetensors are read"
            )
        if not shards:
            raise InvalidCheckpointError(f"{self.directory} has no model.safetensors")
        return shards

    def _list(self) -> list[Path]:
        return sorted(self.directory.iterdir())

    def _roots(self) -> Iterator[Path]:
        yield self.directory.resolve()
        # In the hub's own cache a snapshot is a directory of links to blobs beside it.
        if self.directory.absolute().parent.name == "snapshots":
            yield self.directory.absolute().parent.parent.resolve() / "blobs"


def _is_block_scaled(scheme: object) -> bool:
    return isinstance(scheme, dict) and scheme.get("quant_method") == "fp8"
