"""What a config says of itself that rules the exactness laws out is refused with that reason.

The configs are transformers' own, with their class defaults. So these tests notice a release that
changes how a config declares a sliding window.
"""

from __future__ import annotations

from typing import Any

import pytest
import transformers

from kvfidelity.cache.architectures import check_architecture
from kvfidelity.errors import UserError


def config_of(name: str, **values: Any) -> dict[str, Any]:
    config: dict[str, Any] = getattr(transformers, name)(**values).to_dict()
    return config


YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("LlamaConfig", {}),
        ("LlamaConfig", {"rope_parameters": LLAMA3 | {"rope_theta": 5e5}}),
        ("Qwen2Config", {}),
        ("Qwen2Config", {"rope_parameters": YARN | {"rope_theta": 1e6}}),
        ("Qwen3Config", {}),
        ("MistralConfig", {"sliding_window": None}),
        ("Phi3Config", {}),
    ],
)
def test_supported_architectures_pass(name: str, values: dict[str, Any]) -> None:
    check_architecture(config_of(name, **values))


@pytest.mark.parametrize(
    ("name", "values", "reason"),
    [
        ("MistralConfig", {"sliding_window": 4096}, "sliding-window"),
        ("Qwen2Config", {"use_sliding_window": True, "max_window_layers": 4}, "sliding-window"),
        ("Phi3Config", {"sliding_window": 2047}, "sliding-window"),
        ("Gemma3TextConfig", {}, "'gemma3_text' is not supported.*sliding-window"),
        ("GptOssConfig", {}, "'gpt_oss' is not supported.*sliding-window"),
        ("MistralConfig", {"sliding_window": 4096, "max_position_embeddings": 4096}, "over 4096"),
        ("Qwen3_5TextConfig", {}, "layers of kind linear_attention"),
        ("Qwen3_5Config", {}, "wraps a text model"),
        ("T5Config", {}, "cross-attention"),
        ("GPT2Config", {}, "states no rotary position embedding"),
        ("BloomConfig", {}, "states no rotary position embedding"),
        (
            "LlamaConfig",
            {"rope_parameters": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}},
            "'dynamic' RoPE",
        ),
    ],
)
def test_others_are_refused_by_name_with_the_reason(
    name: str, values: dict[str, Any], reason: str
) -> None:
    with pytest.raises(UserError, match=reason):
        check_architecture(config_of(name, **values))


def test_configs_of_older_releases_are_read() -> None:
    llama = {"model_type": "llama", "rope_theta": 5e5, "rope_scaling": None}
    check_architecture(llama)
    qwen = {"model_type": "qwen2", "sliding_window": 4096, "use_sliding_window": False}
    check_architecture(qwen | {"rope_theta": 1e6})
    long = {"type": "longrope", "short_factor": [1.0], "long_factor": [1.0]}
    with pytest.raises(UserError, match="'longrope' RoPE"):
        check_architecture({"model_type": "phi3", "sliding_window": None, "rope_scaling": long})
    with pytest.raises(UserError, match="'su' RoPE"):
        check_architecture({"model_type": "phi3", "rope_scaling": long | {"type": "su"}})


def test_a_config_without_a_type_is_refused() -> None:
    with pytest.raises(UserError, match="names no model_type"):
        check_architecture({})
