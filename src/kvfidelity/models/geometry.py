"""The sizes of a model's cache from its config, without heavy imports."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from kvfidelity.bounded_json import read_json
from kvfidelity.errors import UserError

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
            UserError: there is no config.json.
        """
        file = Path(directory) / "config.json"
        if not file.is_file():
            raise UserError(f"{directory} holds no model (no config.json)")
        config = read_json(file)
        heads = config["num_attention_heads"]
        return cls(
            layers=config["num_hidden_layers"],
            kv_heads=config.get("num_key_value_heads", heads),
            head_size=config.get("head_dim") or config["hidden_size"] // heads,
            window=config["max_position_embeddings"],
        )

    def token_bytes(self, dtype: str) -> int:
        """Keys and values of one token over all layers."""
        return 2 * self.layers * self.kv_heads * self.head_size * BYTES[dtype]
