"""Which architectures the exactness laws hold for; the others are refused by name.

This module reads a model's config as a plain mapping and imports nothing heavy.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from kvfidelity.errors import UserError

SUPPORTED = ("llama", "mistral", "phi3", "qwen2", "qwen3")
#: Rotary variants whose frequencies depend on nothing but the config.
SUPPORTED_ROPE = ("default", "linear", "llama3", "yarn")


def check_architecture(config: Mapping[str, Any]) -> None:
    """Refuse a model that positions-as-data would not reproduce.

    Args:
        config: the content of its config.json.

    Raises:
        UserError: names the architecture and the reason.
    """
    name = str(config.get("model_type", "unknown"))
    if name not in SUPPORTED:
        raise UserError(
            f"model type {name!r} is not supported ({', '.join(SUPPORTED)} are): {_reason(config)}"
        )
    if _has_sliding_window(config):
        raise UserError(
            f"this {name} model has sliding-window attention: its layers drop tokens by "
            "themselves, so a policy's evictions could not be separated from the model's; use a "
            "model without it"
        )
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind not in SUPPORTED_ROPE:
        raise UserError(
            f"this {name} model uses {kind!r} RoPE, whose frequencies change with the length: "
            f"keys could not be rotated again exactly; supported: {', '.join(SUPPORTED_ROPE)}"
        )


def _has_sliding_window(config: Mapping[str, Any]) -> bool:
    kinds = config.get("layer_types") or []
    if any(kind != "full_attention" for kind in kinds):
        return True
    if config.get("sliding_window") is None or config.get("use_sliding_window") is False:
        return False
    # A window as long as the trained one cuts nothing; Phi-3 mini 4k's (2,047 of 4,096) does.
    window = int(config.get("max_position_embeddings") or 0)
    return not kinds and int(config["sliding_window"]) < window


def _reason(config: Mapping[str, Any]) -> str:
    if config.get("is_encoder_decoder"):
        return "it has cross-attention"
    if not any(key in config for key in ("rope_parameters", "rope_theta", "rope_scaling")):
        return "it has no rotary position embedding"
    if _has_sliding_window(config):
        return "it has sliding-window attention"
    return "the exactness laws have not been shown for it"
