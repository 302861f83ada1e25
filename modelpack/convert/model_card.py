"""The front matter of a model card (https://huggingface.co/docs/hub/model-cards): what its README.md says in YAML."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

MAX_FRONT_MATTER = 256 << 10

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class ModelCard:
    """The fields that travel with a model. ``fields`` holds every front matter key whose value is text or a list of
    texts; what is more complicated (``model-index``) is dropped.
    """

    license: str | None = None
    base_models: tuple[str, ...] = ()
    tags: tuple[str, ...] = ()
    fields: Mapping[str, str | list[str]] = field(default_factory=lambda: MappingProxyType({}))


def parse_model_card(text: str) -> ModelCard:
    """Read the front matter of a card. A card is prose by strangers: what does not parse counts as not said."""
    fields = _front_matter(text)
    base = fields.get("base_model", fields.get("base_models", []))
    tags = fields.get("tags", [])
    licenses = fields.get("license", [])
    return ModelCard(
        license=_as_list(licenses)[0] if licenses else None,
        base_models=tuple(_as_list(base)),
        tags=tuple(_as_list(tags)),
        fields=MappingProxyType(fields),
    )


def _front_matter(text: str) -> dict[str, str | list[str]]:
    import yaml

    lines = text[:MAX_FRONT_MATTER].splitlines()
    if not lines or lines[0].rstrip() != "---":
        return {}
    try:
        end = next(number for number, line in enumerate(lines[1:], 1) if line.rstrip() == "---")
    except StopIteration:
        logger.warning("the model card's front matter has no end, or is longer than %d KiB", MAX_FRONT_MATTER >> 10)
        return {}
    # Tabs are no indentation in YAML, but are found in published cards.
    content = "\n".join(lines[1:end]).replace("\t", "  ")
    try:
        # BaseLoader makes texts of everything: "no" stays Norwegian and version 1.10 does not become 1.1.
        document = yaml.load(content, Loader=yaml.BaseLoader)  # noqa: S506
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        logger.warning("the model card's front matter is not YAML: %s", error)
        return {}
    if not isinstance(document, dict):
        return {}
    return {key: value for key, value in document.items() if isinstance(key, str) and _is_text(value)}


def _is_text(value: object) -> bool:
    if isinstance(value, list):
        return bool(value) and all(isinstance(item, str) for item in value)
    return isinstance(value, str) and value not in ("", "~", "null")


def _as_list(value: str | list[str]) -> list[str]:
    return [value] if isinstance(value, str) else value
