"""Special tokens and the chat template: the ids of bos, eos and the others, and which of them a tokenizer adds itself.

Read from tokenizer.json's post-processor, tokenizer_config.json and config.json, in that order of authority, as
``SpecialVocab`` of the llama.cpp in llama-cpp-python 0.3.36 reads them (PyPI's gguf 0.19.0 still reads them otherwise).
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from modelpack.convert.checkpoint import Checkpoint
from modelpack.convert.vocabulary import added_tokens, as_dict

KINDS = ("bos", "eos", "unk", "sep", "pad", "cls", "mask")

ChatTemplate = str | list[dict[str, str]]


@dataclass(slots=True)
class SpecialTokens:
    """``ids`` and ``added`` keep the order in which they were found, which is the order in the GGUF file."""

    ids: dict[str, int] = field(default_factory=dict)
    added: dict[str, bool] = field(default_factory=dict)
    chat_template: ChatTemplate | None = None
    normalizer: dict[str, bool] = field(default_factory=dict)
    """``lowercase`` and ``strip_accents``, where tokenizer.json says so."""


def read_special_tokens(checkpoint: Checkpoint, *, vocabulary_size: int) -> SpecialTokens:
    """Raises InvalidCheckpointError when one of the tokenizer's files is not JSON."""
    tokenizer = checkpoint.read_json("tokenizer.json") or {}
    settings = checkpoint.read_json("tokenizer_config.json") or {}
    texts = {kind: text for kind in KINDS if (text := _text(settings.get(f"{kind}_token"))) is not None}
    if tokenizer:
        for kind, substitute in (("bos", "cls"), ("eos", "sep")):
            if kind not in texts and substitute in texts:
                texts[kind] = texts[substitute]
    special = SpecialTokens(chat_template=_read_chat_template(checkpoint, settings))
    _read_normalizer(tokenizer.get("normalizer"), special.normalizer)
    for processor in _processors(tokenizer):
        _read_processor(processor, texts, special.added)
    kinds = (*KINDS, *(kind for kind in ("eot", "eom") if kind in texts))
    ids = {token["content"]: token["id"] for token in added_tokens(tokenizer)}
    for kind in kinds:
        flag = settings.get(f"add_{kind}_token")
        if isinstance(flag, bool):
            special.added.setdefault(kind, flag)
        _keep_id(special, kind, ids.get(texts.get(kind)), vocabulary_size)
    for kind in kinds:
        _keep_id(special, kind, checkpoint.config.get(f"{kind}_token_id"), vocabulary_size)
    _keep_id(special, "unk", _unknown(as_dict(tokenizer.get("model"))), vocabulary_size)
    return special


def strips_behind(checkpoint: Checkpoint) -> bool:
    """Whether the spaces behind some added token belong to it."""
    listed = as_dict((checkpoint.read_json("tokenizer_config.json") or {}).get("added_tokens_decoder")).values()
    entries = added_tokens(checkpoint.read_json("tokenizer.json") or {}) or [as_dict(entry) for entry in listed]
    return any(entry.get("rstrip") is True for entry in entries)


def _unknown(model: Mapping[str, Any]) -> object:
    """The id for what no token stands for, by the model itself; llama.cpp would take BERT's and T5's for granted."""
    match model.get("type"):
        case "WordPiece":
            return as_dict(model.get("vocab")).get(str(model.get("unk_token")))
        case "Unigram":
            return model.get("unk_id")
    return None


def _keep_id(special: SpecialTokens, kind: str, token: object, vocabulary_size: int) -> None:
    if type(token) is int and 0 <= token < vocabulary_size:
        special.ids.setdefault(kind, token)


def _read_processor(processor: Mapping[str, Any], texts: dict[str, str], added: dict[str, bool]) -> None:
    """Learn from one post-processor which special tokens are added to a sequence."""
    match processor.get("type"):
        case "ByteLevel":
            added.setdefault("bos", False)
            added.setdefault("eos", False)
        case "RobertaProcessing":
            added.update(bos=True, eos=True, sep=True)
            for kind in ("cls", "sep"):
                pair = processor.get(kind)
                if kind not in texts and isinstance(pair, list) and pair and isinstance(pair[0], str):
                    texts[kind] = pair[0]
        case "TemplateProcessing":
            _read_template(_dicts(processor.get("single")), _dicts(processor.get("pair")), texts, added)


def _read_template(
    single: list[Mapping[str, Any]], pair: list[Mapping[str, Any]], texts: dict[str, str], added: dict[str, bool]
) -> None:
    first = _special(single[0]) if len(single) > 1 else None
    last = _special(single[-1]) if len(single) > 1 else None
    if first is not None:
        if first not in (texts.get("bos"), texts.get("cls")):
            texts.setdefault("bos", first)
            texts.setdefault("cls", first)
        added["bos"] = first in (texts.get("bos"), texts.get("cls"))
    if last is not None:
        if "eos" in texts and last != texts["eos"]:
            # What ends a sequence is eos to llama.cpp; what the settings call eos then ends a turn.
            texts["eom" if "eot" in texts else "eot"] = texts["eos"]
        texts["eos"] = last
        added["eos"] = True
    # What is left between the tokens that a single sequence gets, too, is A [separator] [separator] B.
    if first is not None and pair and _special(pair[0]) == first:
        pair = pair[1:]
    if last is not None and pair and _special(pair[-1]) == last:
        pair = pair[:-1]
    middle = [_special(part) for part in pair[1:-1]]
    if middle and _sequence(pair[0]) == "A" and _sequence(pair[-1]) == "B":
        known = {texts[kind] for kind in ("sep", "eos") if kind in texts}
        added["sep"] = (middle[0] in known and last is None) or (len(middle) == 2 and middle[1] in known)
        if added["sep"] and "eos" in texts:
            texts.setdefault("sep", texts["eos"])


def _read_chat_template(checkpoint: Checkpoint, settings: Mapping[str, Any]) -> ChatTemplate | None:
    """From tokenizer_config.json, or chat_template.jinja with what lies beside it, or chat_template.json."""
    template: object = settings.get("chat_template")
    if template is None and (text := checkpoint.read_text("chat_template.jinja")) is not None:
        more = checkpoint.additional_chat_templates
        template = [{"name": name, "template": entry} for name, entry in {"default": text, **more}.items()]
        template = template if more else text
    if template is None:
        template = (checkpoint.read_json("chat_template.json") or {}).get("chat_template")
    if isinstance(template, str):
        return template
    if isinstance(template, dict):
        template = [{"name": name, "template": entry} for name, entry in template.items()]
    named = [
        {"name": entry["name"], "template": entry["template"]}
        for entry in _dicts(template)
        if isinstance(entry.get("name"), str) and isinstance(entry.get("template"), str)
    ]
    return named or None


def _read_normalizer(normalizer: object, found: dict[str, bool]) -> None:
    """Whether text is put in lower case and loses its accents: what llama.cpp can do of normalizers."""
    if not isinstance(normalizer, dict):
        return
    match normalizer.get("type"):
        case "Lowercase":
            found["lowercase"] = True
        case "StripAccents":
            found["strip_accents"] = True
        case "BertNormalizer":
            found |= {
                key: normalizer[key] for key in ("lowercase", "strip_accents") if isinstance(normalizer.get(key), bool)
            }
        case "Sequence":
            for step in _dicts(normalizer.get("normalizers")):
                _read_normalizer(step, found)


def _processors(tokenizer: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    processor = tokenizer.get("post_processor")
    if not isinstance(processor, dict):
        return []
    return _dicts(processor["processors"]) if "processors" in processor else [processor]


def _text(entry: object) -> str | None:
    """A special token's text: written as it is, or as an object with its content."""
    content = entry.get("content") if isinstance(entry, dict) else entry
    return content if isinstance(content, str) and content else None


def _special(part: Mapping[str, Any]) -> str | None:
    entry = part.get("SpecialToken")
    name = entry.get("id") if isinstance(entry, dict) else None
    return name if isinstance(name, str) else None


def _sequence(part: Mapping[str, Any]) -> str | None:
    entry = part.get("Sequence")
    name = entry.get("id") if isinstance(entry, dict) else None
    return name if isinstance(name, str) else None


def _dicts(value: object) -> list[Mapping[str, Any]]:
    return [item for item in value if isinstance(item, dict)] if isinstance(value, list) else []
