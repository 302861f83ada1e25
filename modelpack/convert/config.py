"""Hyper-parameters: what config.json says, what its class would have filled in, checked when they are asked for."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from modelpack.errors import InvalidCheckpointError


@dataclass(frozen=True, slots=True)
class Config:
    """The values of config.json over an architecture's defaults. A value of null counts as not there.

    Beside them two facts that other files or flags decide: ``file_type`` is what is written, ``pooling`` how a model
    that embeds makes one vector of many (``mean``, ``cls`` or ``last``).
    """

    values: Mapping[str, Any]
    file_type: str = "F32"
    pooling: str | None = None

    @classmethod
    def of(cls, config: Mapping[str, Any], defaults: Mapping[str, Any], **facts: Any) -> "Config":
        return cls({**defaults, **{key: value for key, value in config.items() if value is not None}}, **facts)

    def integer(self, *keys: str) -> int:
        """The first of these keys that is there. Raises InvalidCheckpointError when none is."""
        value = self.find_integer(*keys)
        if value is None:
            raise InvalidCheckpointError(f"config.json has no {keys[0]}")
        return value

    def find_integer(self, *keys: str) -> int | None:
        """As ``integer``, or None. Raises InvalidCheckpointError for what is not a count of 1 to 2**31 - 1."""
        for key in keys:
            value = self.values.get(key)
            if value is not None:
                if type(value) is not int or not 1 <= value < 1 << 31:
                    raise InvalidCheckpointError(f"config.json has {value!r:.50} for {key}, which is no size")
                return value
        return None

    def count(self, key: str) -> int:
        """How many of something there are, 0 where nothing is said. Raises InvalidCheckpointError as ``integer``."""
        value = self.values.get(key)
        return 0 if value is None or (type(value) is int and value == 0) else self.integer(key)

    def flag(self, key: str) -> bool:
        """Raises InvalidCheckpointError for what is neither true nor false; what is not there is false."""
        value = self.values.get(key, False)
        if not isinstance(value, bool):
            raise InvalidCheckpointError(f"config.json has {value!r:.50} for {key}, which is neither true nor false")
        return value

    def number(self, key: str) -> float:
        """Raises InvalidCheckpointError for what is not there or no number."""
        value = self.find_number(key)
        if value is None:
            raise InvalidCheckpointError(f"config.json has no {key}")
        return value

    def find_number(self, *keys: str) -> float | None:
        """The first of these keys that is there, or None. Raises InvalidCheckpointError for what is no number."""
        for key in keys:
            value = self.values.get(key)
            if value is not None:
                return as_number(value, key)
        return None

    @property
    def heads(self) -> int:
        return self.integer("num_attention_heads", "n_head", "n_heads")

    @property
    def key_value_heads(self) -> int:
        return self.find_integer("num_key_value_heads", "n_kv_heads") or self.heads

    @property
    def blocks(self) -> int:
        return self.integer("num_hidden_layers", "n_layers", "n_layer", "num_layers")

    @property
    def width(self) -> int:
        """Elements of an embedding."""
        return self.integer("hidden_size", "n_embd", "d_model")

    @property
    def head_length(self) -> int:
        """Elements of one head."""
        return self.find_integer("head_dim") or self.width // self.heads

    @property
    def rope(self) -> "RopeParameters":
        """Rotary embedding: ``rope_parameters`` since transformers 5, before it ``rope_scaling`` and rope_theta.

        Where layers with a sliding window have parameters of their own, these are the others'.
        """
        stored = self._rope_values()
        stored = stored.get("full_attention", stored)
        if not isinstance(stored, dict):
            raise InvalidCheckpointError("config.json has no proper rope_parameters")
        kind = stored.get("rope_type", stored.get("type"))
        theta = stored.get("rope_theta", self.find_number("global_rope_theta", "rope_theta", "rotary_emb_base"))
        return RopeParameters(
            kind=str(kind).lower() if kind is not None else None,
            theta=None if theta is None else as_number(theta, "rope_theta"),
            values=stored,
        )

    @property
    def sliding_rope_theta(self) -> float | None:
        """The frequency base of layers with a sliding window, where it is one of their own."""
        stored = self._rope_values().get("sliding_attention")
        if isinstance(stored, dict) and stored.get("rope_theta") is not None:
            return as_number(stored["rope_theta"], "rope_parameters.sliding_attention.rope_theta")
        return self.find_number("local_rope_theta", "rope_local_base_freq")

    @property
    def rotated_share(self) -> float:
        """Which part of a head is rotated, 0 to 1. Raises InvalidCheckpointError where nothing says it."""
        share = self.rope.find_number("partial_rotary_factor")
        if share is None:
            share = self.find_number("partial_rotary_factor", "rope_pct", "rotary_pct")
        if share is None or not 0 < share <= 1:
            raise InvalidCheckpointError("config.json has no proper partial_rotary_factor")
        return share

    def _rope_values(self) -> dict[str, Any]:
        stored = self.values.get("rope_parameters") or self.values.get("rope_scaling") or {}
        if not isinstance(stored, dict):
            raise InvalidCheckpointError("config.json has no proper rope_parameters")
        return stored


@dataclass(frozen=True, slots=True)
class RopeParameters:
    kind: str | None
    theta: float | None
    values: Mapping[str, Any]

    def find_number(self, *keys: str) -> float | None:
        for key in keys:
            if self.values.get(key) is not None:
                return as_number(self.values[key], f"rope_parameters.{key}")
        return None

    def number(self, key: str, default: float) -> float:
        value = self.find_number(key)
        return default if value is None else value


def as_number(value: object, key: str) -> float:
    """Raises InvalidCheckpointError, naming ``key``, for what is no finite number."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not abs(value) < 1e30:
        raise InvalidCheckpointError(f"config.json has {value!r:.50} for {key}, which is no number")
    return value
