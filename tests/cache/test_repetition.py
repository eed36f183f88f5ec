"""An extra forward: what it finds, and that it leaves no trace."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from kvfidelity.cache.attach import new_cache
from kvfidelity.cache.evictor import EvictionSchedule, Evictor
from kvfidelity.cache.hooks import cache_argument
from kvfidelity.cache.managed import ManagedCache
from kvfidelity.cache.packed import packed
from kvfidelity.cache.policies import build_policy
from kvfidelity.cache.positions import PositionMode
from kvfidelity.cache.repetition import LEAD, Repetition
from kvfidelity.cache.rotary import rotate
from kvfidelity.cache.transcript import Transcript
from kvfidelity.errors import UserError
from tests.cache.conftest import tiny
from tests.cache.ragged_sets import random_ragged

MODES = list(PositionMode)
REQUEST = (5, 6, 7)


def text(count: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(3, 97, (1, count), generator=torch.Generator().manual_seed(seed))


def fed(model: Any, ids: torch.Tensor, mode: str = "rerotated", **options: Any) -> ManagedCache:
    cache = new_cache(model, mode, transcript=Transcript(request=REQUEST), **options)
    with torch.inference_mode():
        model(ids, **{cache_argument(model): cache})
    return cache


def written_out(
    model: Any, cache: ManagedCache, ids: list[int], sinks: int, chunk: int
) -> list[list[torch.Tensor]]:
    """KVzip's scores with every query, key and softmax written out, part by part, on copies."""
    table, rows = cache.slot_table, []
    layers, groups = len(cache.layers), 2
    token = [[table.row(i, g).token_index[0, 0] for g in range(groups)] for i in range(layers)]
    held = sorted({int(t) for layer in token for row in layer for t in row})
    parts = [held[start : start + chunk] for start in range(0, len(held), chunk)]
    rows = [[torch.zeros(row.numel()) for row in layer] for layer in token]
    for index, part in enumerate(parts):
        lead = parts[index - 1][-LEAD:] if index else []
        again = [*REQUEST, *(ids[t] for t in (*lead, *part))]
        copy = cache.fork()
        copy.transcript = copy.scores = None
        kept: list[torch.Tensor] = []
        heads = [copy.slot_table.row(i, g) for i in range(layers) for g in range(groups)]
        starts = [head.next_position for head in heads]
        hooks = [
            module.self_attn.q_proj.register_forward_hook(
                lambda _m, _a, out, kept=kept: kept.append(out)
            )
            for module in model.get_decoder().layers
        ]
        with torch.inference_mode():
            model(torch.tensor([again]), **{cache_argument(model): copy})
        for hook in hooks:
            hook.remove()
        for layer in range(layers):
            queries = kept[layer].view(len(again), groups, 3, 8)
            for group in range(groups):
                first = starts[layer * groups + group]
                cos, sin = copy.rotary.angles(
                    torch.arange(first, first + len(again)), torch.device("cpu")
                )
                one = copy.layers[layer]
                keys = (
                    one.heads[group].rotated_keys[0]
                    if hasattr(one, "heads")
                    else one.rotated_keys[group]
                )
                own = token[layer][group]
                member = [i for i, t in enumerate(own.tolist()) if part[0] <= t <= part[-1]]
                sink = [i for i in range(min(sinks, own.numel())) if own[i] < part[0]]
                seen = [*sink, *member]
                for head in range(3):
                    turned = rotate(queries[:, group, head], cos, sin)
                    for number, query in enumerate(turned):
                        columns = [*seen, *range(own.numel(), own.numel() + number + 1)]
                        weights = (keys[columns] @ query / 8**0.5).softmax(0)
                        for column, weight in zip(seen, weights, strict=False):
                            if column in member:
                                best = rows[layer][group]
                                best[column] = torch.maximum(best[column], weight)
    return rows


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("ragged", [False, True])
def test_the_weights_of_a_repetition_are_those_written_out(
    ragged: bool, mode: str, llama: Any
) -> None:
    ids = text(34)
    cache = fed(llama, ids, mode)
    if ragged:
        cache.keep(random_ragged(torch.full((3, 2), 34), 17, seed=1))
    found = Repetition(cache)
    rows = [[found.of_head(i, g).attention(3, 10)[0, 0] for g in range(2)] for i in range(3)]
    for ours, theirs in zip(rows, written_out(llama, cache, ids[0].tolist(), 3, 10), strict=True):
        for one, other in zip(ours, theirs, strict=True):
            assert torch.allclose(one, other, atol=1e-5)
            assert bool((one > 0).all())


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("ragged", [False, True])
def test_an_extra_forward_leaves_the_cache_as_it_was(
    ragged: bool, mode: str, architecture: str
) -> None:
    """Later logits, scores and queries are, to the bit, those of a cache that never did it."""
    model = tiny(architecture)
    groups = model.config.num_key_value_heads
    caches = [fed(model, text(40), mode, collect_scores=True, query_window=8) for _ in range(2)]
    for cache in caches:
        if ragged:
            cache.keep(random_ragged(torch.full((3, groups), 40), 21, seed=3))
    Repetition(caches[0]).of_head(0, 0).attention(4, 16)
    with torch.inference_mode():
        one, other = (
            model(text(9, seed=5), **{cache_argument(model): cache}).logits for cache in caches
        )
    assert torch.equal(one, other)
    for cache in caches:
        assert cache.transcript is not None
        assert cache.transcript.ids == [*text(40)[0].tolist(), *text(9, seed=5)[0].tolist()]
    scores, queries = ([each.scores, each.recent_queries] for each in caches)
    assert torch.equal(scores[0].rows("latest"), queries[0].rows("latest"))
    assert torch.equal(scores[1].of_layer(1), queries[1].of_layer(1))
    assert caches[0].nbytes == caches[1].nbytes
    assert caches[0].slot_table.tokens_seen == caches[1].slot_table.tokens_seen == 49


def test_caches_in_one_forward_note_each_their_own_text(llama: Any) -> None:
    caches = [new_cache(llama, transcript=Transcript()) for _ in range(3)]
    caches[1].transcript = None
    row = text(12)
    with torch.inference_mode():
        llama(row, **{cache_argument(llama): packed(caches, [5, 4, 3])})
    ids = row[0].tolist()
    assert [each.transcript and each.transcript.ids for each in caches] == [ids[:5], None, ids[9:]]


def test_a_fork_and_a_rollback_keep_the_text_of_their_moment(llama: Any) -> None:
    cache = fed(llama, text(20))
    with torch.inference_mode(), cache.rollback_after():
        llama(text(5, seed=1), **{cache_argument(llama): cache})
        assert cache.transcript is not None and len(cache.transcript.ids) == 25
    assert cache.transcript is not None
    assert cache.transcript.ids == text(20)[0].tolist()
    copy = cache.fork(12)
    assert copy.transcript is not None
    assert copy.transcript.ids == text(20)[0, :12].tolist()
    assert copy.transcript.request == REQUEST


def test_a_cache_that_missed_a_part_of_its_text_is_refused(llama: Any) -> None:
    cache = fed(llama, text(40))
    assert cache.transcript is not None
    del cache.transcript.ids[-1]
    evictor = Evictor(build_policy("kvzip", {}), EvictionSchedule("turn", 40, 24))
    with pytest.raises(UserError, match=r"^policy kvzip cannot rank: the cache does not know"):
        evictor.before_turn(cache)
