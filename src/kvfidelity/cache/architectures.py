"""Why an architecture cannot be exact, as far as its config says so; the proof is the judge.

Each reason names what breaks the laws; `cache.proof` then runs the laws for what passes here. This
module reads a model's config as a plain mapping and imports nothing heavy.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from kvfidelity.errors import UserError

#: Rotary variants whose frequencies depend on nothing but the config.
SUPPORTED_ROPE = ("default", "linear", "llama3", "yarn")
#: Their rotation pairs neighbouring features; here a feature is paired with one half a head away.
INTERLEAVED = ("cohere", "cohere2", "ernie4_5", "ernie4_5_moe", "glm", "glm4", "helium")
NORM_AFTER_ROTATION = ("hunyuan_v1_dense", "hunyuan_v1_moe")


def check_architecture(config: Mapping[str, Any]) -> None:
    """Refuse a model that positions-as-data would not reproduce.

    Args:
        config: the content of its config.json.

    Raises:
        UserError: names the architecture and the reason.
    """
    if not isinstance(config, Mapping):
        raise UserError("config.json is no object: fetch the model again")
    try:
        reason = _reason(config)
    except (AttributeError, TypeError, ValueError) as error:
        told = " ".join(str(error).split())[:200]
        raise UserError(
            f"config.json has a value of another type than it should ({told}): fetch the model "
            "again"
        ) from None
    if reason:
        name = str(config.get("model_type", "unknown"))
        raise UserError(f"model type {name!r} is not supported: {reason}")


def _reason(config: Mapping[str, Any]) -> str | None:
    name = config.get("model_type")
    if name is None:
        return "its config.json names no model_type"
    if config.get("is_encoder_decoder"):
        return "it has cross-attention"
    if "text_config" in config:
        inner = (config["text_config"] or {}).get("model_type", "unknown")
        return (
            f"it wraps a text model ({inner}) with other inputs; use a checkpoint of the text "
            "model alone"
        )
    return _layer_reason(config, str(name)) or _rope_reason(config, str(name))


def _layer_reason(config: Mapping[str, Any], name: str) -> str | None:
    if config.get("kv_lora_rank"):
        return (
            "it has multi-head latent attention, which caches a compressed vector and not keys "
            "and values"
        )
    kinds = sorted({str(kind) for kind in config.get("layer_types") or ()} - {"full_attention"})
    sliding = config.get("sliding_window")
    slides = sliding is not None and config.get("use_sliding_window") is not False
    if "sliding_attention" in kinds or (slides and not config.get("layer_types")):
        window = f" over {sliding} tokens" if sliding else ""
        return (
            f"it has sliding-window attention{window}: its layers drop tokens by themselves, so a "
            "policy's evictions could not be separated from the model's; use a model without it"
        )
    if kinds:
        return f"it has layers of kind {', '.join(kinds)}, which keep no keys and values per token"
    if any(flag == 0 for flag in config.get("no_rope_layers") or ()):
        return "some of its layers have no rotary position embedding, but keys of all are rotated"
    if name in NORM_AFTER_ROTATION:
        return "it normalises queries and keys after their rotation, so rotating later differs"
    return None


def _rope_reason(config: Mapping[str, Any], name: str) -> str | None:
    if not any(key in config for key in ("rope_parameters", "rope_theta", "rope_scaling")):
        return "its config.json states no rotary position embedding (no rope_theta)"
    if name in INTERLEAVED or config.get("rope_interleave"):
        return "its rotary embedding is interleaved (it pairs neighbouring features)"
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    if rope and all(isinstance(value, Mapping) for value in rope.values()):
        return "its kinds of layers have rotary embeddings of their own"
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind not in SUPPORTED_ROPE:
        return (
            f"it uses {kind!r} RoPE, whose frequencies change with the length: keys could not be "
            f"rotated again exactly; supported: {', '.join(SUPPORTED_ROPE)}"
        )
    if rope.get("llama_4_scaling_beta"):
        return (
            "its queries are scaled by their absolute position (llama_4_scaling_beta), so a moved "
            "position changes more than the rotation"
        )
    return None
