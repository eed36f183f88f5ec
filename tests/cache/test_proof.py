"""What the laws on a replica accept and refuse, over transformers' own configs and defaults."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers

from kvfidelity.cache.attach import attach, new_cache
from kvfidelity.cache.hooks import cache_argument, output_logits
from kvfidelity.cache.proof import LAWS, TOLERANCE, prove
from kvfidelity.cache.replica import replica, replica_config
from kvfidelity.errors import UserError

PROVEN = [
    "ApertusConfig",
    "ArceeConfig",
    "GemmaConfig",
    "Glm4MoeConfig",
    "GraniteConfig",
    "GraniteMoeConfig",
    "LlamaConfig",
    "MixtralConfig",
    "NemotronConfig",
    "Olmo2Config",
    "OlmoConfig",
    "Phi3Config",
    "PhiConfig",
    "Qwen2Config",
    "Qwen2MoeConfig",
    "Qwen3Config",
    "Qwen3MoeConfig",
    "SeedOssConfig",
    "SolarOpenConfig",
    "StableLmConfig",
    "Starcoder2Config",
]
PAIRS = "pairs neighbouring features"
REFUSED = {
    "CohereConfig": PAIRS,
    "DeepseekV3Config": "multi-head latent attention",
    "Ernie4_5Config": PAIRS,
    "FalconConfig": "does not run with a managed cache",
    "GPTNeoXConfig": "does not run with a managed cache",
    "Gemma2Config": "sliding-window",
    "Gemma3TextConfig": "sliding-window",
    "Glm4Config": PAIRS,
    "GptOssConfig": "sliding-window",
    "HeliumConfig": PAIRS,
    "HunYuanDenseV1Config": "after their rotation",
    "Ministral3Config": "scaled by their absolute position",
    "Mistral3Config": r"wraps a text model \(mistral\)",
    "MistralConfig": "sliding-window attention over 4096 tokens",
    "Qwen3_5Config": r"wraps a text model \(qwen3_5_text\)",
    "Qwen3_5TextConfig": "layers of kind linear_attention",
    "SmolLM3Config": "no rotary position embedding",
}


def config_of(name: str, **values: Any) -> dict[str, Any]:
    config: dict[str, Any] = getattr(transformers, name)(**values).to_dict()
    return config


@pytest.mark.parametrize("name", PROVEN)
def test_the_laws_hold_on_a_replica(name: str) -> None:
    deviations = prove(config_of(name))
    assert set(deviations) == set(LAWS)
    assert max(deviations.values()) <= TOLERANCE / 2


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_exact_is_refused_with_its_reason(name: str) -> None:
    with pytest.raises(UserError, match=REFUSED[name]):
        prove(config_of(name))


# What the config's words would tell first, the laws find by themselves.
@pytest.mark.parametrize(
    ("name", "law"),
    [
        ("CohereConfig", "law 1"),
        ("Ernie4_5Config", "law 1"),
        ("Glm4Config", "law 1"),
        ("GptOssConfig", "law 1"),
        ("HeliumConfig", "law 1"),
        ("Ministral3Config", "law 4"),
        ("MistralConfig", "law 1"),
        ("SmolLM3Config", "law 1"),
    ],
)
def test_the_laws_find_it_without_the_named_reason(
    monkeypatch: pytest.MonkeyPatch, name: str, law: str
) -> None:
    monkeypatch.setattr("kvfidelity.cache.proof.check_architecture", lambda config: None)
    with pytest.raises(UserError, match=law):
        prove(config_of(name))


@pytest.mark.parametrize("name", ["MistralConfig", "Ministral3Config"])
def test_the_same_architecture_without_what_breaks_it_is_proven(name: str) -> None:
    config = config_of(name)
    config["sliding_window"] = None
    if name == "Ministral3Config":
        config["rope_parameters"]["llama_4_scaling_beta"] = 0.0
    assert max(prove(config).values()) <= TOLERANCE


@pytest.mark.parametrize("name", ["GraniteConfig", "GraniteMoeConfig"])
def test_constants_that_scale_the_logits_are_applied(name: str) -> None:
    config = config_of(name, logits_scaling=8.0, embedding_multiplier=3.0)
    assert max(prove(config).values()) <= TOLERANCE
    model = replica(replica_config(config))
    hidden = torch.randn(3, 64)
    assert torch.equal(output_logits(model, hidden), model.lm_head(hidden) / 8.0)


def test_an_output_layer_that_is_not_known_is_refused() -> None:
    """A sibling of Granite's constant: nothing in Cohere's words says that logits are scaled."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("kvfidelity.cache.proof.check_architecture", lambda config: None)
        with pytest.raises(UserError, match="hidden states equal the model's own: off by"):
            prove(config_of("CohereConfig", logit_scale=0.1))


def test_a_proof_leaves_the_random_state_alone() -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    prove(config_of("LlamaConfig", rope_parameters={"rope_type": "default", "rope_theta": 12345.0}))
    assert torch.equal(torch.rand(3), expected)


class TestPositionIds:
    @pytest.fixture
    def model(self) -> Any:
        return attach(replica(replica_config(config_of("LlamaConfig"))))

    def test_others_than_the_next_ones_are_refused(self, model: Any) -> None:
        ids = torch.arange(3, 12)[None]
        argument = {cache_argument(model): new_cache(model)}
        with pytest.raises(ValueError, match="position_ids differ from the next ones, 0 to 8"):
            model(ids, position_ids=torch.arange(5, 14)[None], **argument)

    def test_the_next_ones_change_nothing(self, model: Any) -> None:
        ids = torch.arange(3, 12)[None]
        results = []
        for given in ({}, {"position_ids": torch.arange(9)[None]}):
            cache = {cache_argument(model): new_cache(model)}
            results.append(model(ids, **given, **cache).logits)
        assert torch.equal(*results)
