"""The sizes of a model's cache from its config, without heavy imports."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kvfidelity.bounded_json import read_json
from kvfidelity.errors import UserError

#: Larger than any size of a model; four of them and a number type fit in 128 bits.
MOST = 2**31 - 1
BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}


@dataclass(frozen=True)
class Geometry:
    """Sizes that decide how large a cache is; `window` is the trained one in tokens."""

    layers: int
    kv_heads: int
    head_size: int
    window: int

    @classmethod
    def of(cls, directory: Path) -> Geometry:
        """From a model directory's config.json.

        Raises:
            UserError: there is no config.json, or a size in it is none.
        """
        file = Path(directory) / "config.json"
        if not file.is_file():
            raise UserError(f"{directory} holds no model (no config.json)")
        try:
            config = read_json(file)
            heads = _size(config, "num_attention_heads")
            return cls(
                layers=_size(config, "num_hidden_layers"),
                kv_heads=_size(config, "num_key_value_heads", heads),
                head_size=_size(config, "head_dim")
                if config.get("head_dim") is not None
                else _size(config, "hidden_size") // heads,
                window=_size(config, "max_position_embeddings"),
            )
        except (ValueError, TypeError) as error:
            reason = " ".join(str(error).split())[:200]
            raise UserError(f"{file} is broken ({reason}); fetch the model again") from None

    def token_bytes(self, dtype: str) -> int:
        """Keys and values of one token over all layers."""
        return 2 * self.layers * self.kv_heads * self.head_size * BYTES[dtype]


def _size(config: Mapping[str, Any], key: str, default: int | None = None) -> int:
    if not isinstance(config, Mapping):
        raise TypeError("it is no object")
    found = config.get(key)
    if found is None:
        found = default
    if isinstance(found, bool) or not isinstance(found, int) or not 1 <= found <= MOST:
        raise ValueError(f"{key} is {str(found)[:40]}, not a whole number from 1 to {MOST}")
    return found
