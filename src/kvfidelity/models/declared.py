"""Checks that a config.json says what transformers would otherwise fill in by itself.

A value that the file leaves out is taken from the config class, without a word; where it changes
logits and no weight's shape shows it, the model computed is another one.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping
from typing import Any

from kvfidelity.errors import UserError

#: Fields of config classes that change logits and that no weight's shape shows.
DECIDES = re.compile(
    r"^(num_attention_heads|head_dim|num_experts_per_tok|norm_topk_prob|routed_scaling_factor"
    r"|qk_layernorm|use_qk_norm|use_parallel_residual|n_group|topk_group|logit_scale)$"
    r"|(_eps|_epsilon|_multiplier|_scaling|_act|_activation|_softcapping|rotary_factor)$"
)
#: What a scaled RoPE needs; transformers has defaults for some of it.
ROPE_KEYS = {
    "linear": {"factor"},
    "llama3": {
        "factor",
        "low_freq_factor",
        "high_freq_factor",
        "original_max_position_embeddings",
    },
    "yarn": {"factor"},
}
#: Models that transformers wrote before this release had this RoPE base: it was not a setting.
ROPE_THETA_SINCE = (4, 33)


def check_declared(config: Mapping[str, Any]) -> None:
    """Refuse a config that leaves out what decides logits, or weights that are quantised.

    Args:
        config: the content of a config.json, of an architecture that is supported.

    Raises:
        UserError: names the keys, or the method of quantisation.
    """
    _check_quantisation(config)
    try:
        missing = [*_missing_fields(config), *_missing_rope(config)]
    except (AttributeError, TypeError, ValueError) as error:
        told = " ".join(str(error).split())[:200]
        raise UserError(
            f"config.json has a value of another type than it should ({told}): fetch the model "
            "again"
        ) from None
    if missing:
        raise UserError(
            f"config.json does not state {', '.join(missing)}, which changes what the model "
            "computes: transformers would assume a value; add what the model was trained with"
        )


def _check_quantisation(config: Mapping[str, Any]) -> None:
    quantisation = config.get("quantization_config") or config.get("compression_config")
    if quantisation is None:
        return
    method = "an unnamed method"
    if isinstance(quantisation, Mapping):
        method = str(quantisation.get("quant_method", method))
    raise UserError(
        f"the weights are quantised ({method}, quantization_config in config.json), and caches "
        "are measured on weights in float32, bfloat16 or float16: use the checkpoint that this "
        "one was made from, or a GGUF file of it, which is dequantised exactly"
    )


def _missing_fields(config: Mapping[str, Any]) -> list[str]:
    from transformers import AutoConfig

    name = str(config["model_type"])
    try:
        filled = AutoConfig.for_model(name)
    except (ValueError, KeyError):
        raise UserError(f"model type {name!r} is not known to transformers") from None
    # The name in the file may be another one (`n_head` for num_attention_heads).
    other_names = {own: other for other, own in reversed(filled.attribute_map.items())}
    # Not the values of an instance: some classes compute them from others.
    parameters = inspect.signature(type(filled)).parameters
    defaults = {key: parameter.default for key, parameter in parameters.items()}
    return [
        key
        for key, default in defaults.items()
        if DECIDES.search(key)
        and default not in (None, inspect.Parameter.empty)
        and not key.startswith("rope_")
        and key not in config
        and other_names.get(key) not in config
        and not (key == "partial_rotary_factor" and key in (config.get("rope_parameters") or {}))
    ]


def _missing_rope(config: Mapping[str, Any]) -> list[str]:
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    stated = {*rope, *(key for key in ("rope_theta",) if config.get(key) is not None)}
    missing = [] if "rope_theta" in stated or _is_older(config) else ["rope_theta"]
    kind = rope.get("rope_type", rope.get("type"))
    if kind is None and set(rope) - {"rope_theta", "partial_rotary_factor"}:
        missing.append("rope_type")
    return missing + sorted(ROPE_KEYS.get(str(kind), set()) - set(rope))


def _is_older(config: Mapping[str, Any]) -> bool:
    """Whether a Llama was written when its RoPE base was the constant 10000."""
    numbers = re.match(r"(\d+)\.(\d+)", str(config.get("transformers_version", "")))
    written = tuple(int(number) for number in numbers.groups()) if numbers else ROPE_THETA_SINCE
    return config.get("model_type") == "llama" and written < ROPE_THETA_SINCE
