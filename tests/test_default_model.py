"""The laws on real weights and real text: SmolLM2-135M in fp32, ShareGPT dialogues."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from kvfidelity.cache.attach import attach, new_cache
from kvfidelity.cache.hooks import cache_argument
from kvfidelity.cache.managed import ManagedCache
from kvfidelity.cache.positions import PositionMode
from kvfidelity.dialogues.pool import read_dialogue
from kvfidelity.dialogues.segments import ChatSegmenter
from kvfidelity.models.load import load_model
from tests.default_run import MODEL, POOL

TOKENS = 1000

# Fetching and converting takes minutes on a busy machine.
pytestmark = [pytest.mark.network, pytest.mark.timeout(1500)]


@pytest.fixture(scope="module")
def loaded(default_inputs: None) -> Any:
    return load_model(MODEL, "float32", "cpu")


@pytest.fixture(scope="module")
def turns(loaded: Any) -> list[torch.Tensor]:
    """About 1,000 tokens of ShareGPT dialogues in three parts, cut at ends of turns."""
    found = [turn for name in ("000", "001", "002") for turn in read_dialogue(POOL, name).turns]
    segments = ChatSegmenter(loaded[1]).segments(found)
    lengths, ids = [], []
    for part in segments:
        ids += [*part.prompt_ids, *part.reply_ids]
        lengths.append(len(ids))
        if len(ids) >= TOKENS:
            break
    cuts = [lengths[len(lengths) // 3], lengths[2 * len(lengths) // 3], len(ids)]
    whole = torch.tensor([ids])
    return [whole[:, start:stop] for start, stop in zip([0, *cuts], cuts, strict=False)]


@pytest.fixture(scope="module")
def reference(loaded: Any, turns: list[torch.Tensor]) -> torch.Tensor:
    """Logits of Hugging Face's own full-cache forward, before the model is attached."""
    with torch.inference_mode():
        logits: torch.Tensor = loaded[0](torch.cat(turns, 1)).logits[0]
    attach(loaded[0])
    return logits


def feed(model: Any, cache: ManagedCache, ids: torch.Tensor) -> torch.Tensor:
    with torch.inference_mode():
        logits: torch.Tensor = model(ids, **{cache_argument(model): cache}).logits[0]
    return logits


def relative(found: torch.Tensor, expected: torch.Tensor) -> float:
    """Largest difference divided by the largest logit, 10 to 20 for this model."""
    return float((found - expected).abs().max() / expected.abs().max())


@pytest.mark.parametrize("mode", list(PositionMode))
def test_law_1_logits_and_greedy_tokens_are_the_full_forwards(
    loaded: Any, turns: list[torch.Tensor], reference: torch.Tensor, mode: str
) -> None:
    cache = new_cache(loaded[0], mode, collect_scores=mode == "stale")
    logits = torch.cat([feed(loaded[0], cache, part) for part in turns])
    assert relative(logits, reference) < 1e-4
    assert torch.equal(logits.argmax(-1), reference.argmax(-1))


def test_laws_2_3_and_5_on_real_weights(
    loaded: Any, turns: list[torch.Tensor], reference: torch.Tensor
) -> None:
    model, new = loaded[0], turns[2][:, :100]
    grown = new_cache(model, "original")
    feed(model, grown, torch.cat(turns[:2], 1))
    slots = grown.size
    prefix, suffix = torch.arange(slots // 2), torch.arange(slots // 2, slots)

    def after(mode: str, *keeps: torch.Tensor) -> torch.Tensor:
        cache = grown.fork(positions=mode)
        for kept in keeps:
            cache.keep(kept)
        return feed(model, cache, new)

    fresh = new_cache(model, "original")
    feed(model, fresh, torch.cat(turns[:2], 1)[:, : slots // 2])
    expected = feed(model, fresh, new)
    assert relative(after("stale", prefix), expected) < 1e-4
    assert relative(after("rerotated", prefix), expected) < 1e-4
    assert relative(after("original", suffix), after("rerotated", suffix)) < 1e-4
    assert relative(after("stale", suffix), after("rerotated", suffix)) > 1e-2
    halves = (torch.arange(0, slots, 2), torch.arange(0, (slots + 1) // 2, 2))
    once = torch.arange(0, slots, 4)
    assert torch.equal(after("rerotated", *halves), after("rerotated", once))


def test_law_4_on_real_weights(
    loaded: Any, turns: list[torch.Tensor], reference: torch.Tensor
) -> None:
    shifted = new_cache(loaded[0], "original")
    shifted.slot_table.append(777)
    shifted.slot_table.keep(torch.empty(0, dtype=torch.int64))
    logits = feed(loaded[0], shifted, turns[0])
    assert relative(logits, reference[: turns[0].shape[1]]) < 5e-4


def test_laws_6_and_7_on_real_weights(
    loaded: Any, turns: list[torch.Tensor], reference: torch.Tensor
) -> None:
    """Bytes, and scores against eager attention of a second, unattached copy."""
    ids = turns[0][:, :250]
    cache = new_cache(loaded[0], "rerotated", collect_scores=True)
    for part in ids.split((150, 1, 99), dim=1):
        feed(loaded[0], cache, part)
    eager, _ = load_model(MODEL, "float32", "cpu")
    eager.set_attn_implementation("eager")
    with torch.inference_mode():
        weights = torch.stack(eager(ids, output_attentions=True).attentions)[:, 0]
    assert cache.scores is not None
    found = cache.scores.rows("accumulated")
    assert torch.allclose(found, weights.sum(2), rtol=1e-4, atol=1e-4)
    cache.keep(torch.arange(0, 250, 3))
    live = [t for layer in cache.layers for t in (layer.live_keys, layer.live_values)]
    assert cache.nbytes == sum(t.numel() * t.element_size() for t in live) == 84 * 46080
