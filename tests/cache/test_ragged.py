"""The laws for caches whose kv heads hold different numbers of slots."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from transformers import AttentionInterface
from transformers.masking_utils import AttentionMaskInterface

from kvfidelity.cache.attach import attach, new_cache
from kvfidelity.cache.eviction_log import Eviction, replay
from kvfidelity.cache.evictor import EvictionSchedule, Evictor
from kvfidelity.cache.hooks import no_mask
from kvfidelity.cache.managed import ManagedCache
from kvfidelity.cache.policies import build_policy, known_policies
from kvfidelity.cache.positions import PositionMode
from kvfidelity.cache.ragged import RaggedKeepSet, apportion
from kvfidelity.cache.rotary import rotate
from kvfidelity.cache.slots import SlotTable
from kvfidelity.cache.view import view_of
from kvfidelity.errors import UserError
from kvfidelity.metrics.positions import Integrity, integrity
from kvfidelity.metrics.reply_positions import integrity_over_reply
from kvfidelity.records.frames import evictions_frame
from tests.cache import test_laws
from tests.cache.calibrated import calibrated
from tests.cache.conftest import tiny
from tests.cache.ragged_sets import ends, random_ragged
from tests.cache.test_laws import tokens
from tests.cache.views import random_view

MODES = list(PositionMode)
OLD, NEW, PER_HEAD = 60, 17, 25
RAGGED = [kind for kind, policy in known_policies().items() if policy.ragged]
NO_GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="PyTorch sees no GPU here")
#: Largest difference allowed on a GPU, in multiples of that on a CPU: products are summed in
#: another order, and fp32 ones are made of three of TF32 parts.
SLACK = {"cpu": 1, "cuda": 5}


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=[pytest.mark.cuda, NO_GPU])])
def device(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def model(architecture: str, device: str) -> Any:
    return tiny(architecture).to(device)


@pytest.fixture
def llama(device: str) -> Any:
    return tiny("llama").to(device)


def feed(model: Any, cache: ManagedCache, ids: Tensor) -> Tensor:
    """Logits on the CPU."""
    return test_laws.feed(model, cache, ids.to(model.device)).cpu()


def grown(model: Any, mode: str, ids: Tensor, **options: Any) -> ManagedCache:
    cache = new_cache(model, mode, **options)
    feed(model, cache, ids)
    return cache


@pytest.fixture(autouse=True)
def _no_grad() -> Any:
    with torch.inference_mode():
        yield


def grid_of(cache: ManagedCache) -> Tensor:
    """Slots of each kv head now, [L, G]."""
    if cache.slot_table.is_ragged:
        return cache.slot_table.counts
    return torch.full((len(cache.layers), cache.layers[0].live_keys.shape[0]), cache.size)


class DenseReference:
    """Attention over all tokens at once, with a mask and positions for each kv head written out.

    The first `old` tokens see each other at the positions 0, 1, ...; the new ones see the slots
    that each head kept, at the positions that it gave them, and each other.
    """

    def __init__(self, model: Any, kept: RaggedKeepSet, old: int, mode: str) -> None:
        self.model, self.kept, self.old, self.mode = attach(model), kept, old, mode
        self.columns: list[Tensor] = []
        AttentionInterface.register("dense_reference", self.attend)
        AttentionMaskInterface.register("dense_reference", no_mask)
        model.set_attn_implementation("dense_reference")

    def logits(self, ids: Tensor) -> Tensor:
        self.columns = []
        return self.model(ids, use_cache=False).logits[0, self.old :]

    def attend(
        self, module: Any, query: Tensor, key: Tensor, value: Tensor, mask: Any, **options: Any
    ) -> tuple[Tensor, None]:
        rotary = self.model.get_decoder().rotary_emb
        count, groups = query.shape[2], key.shape[1]
        ratio, old = query.shape[1] // groups, self.old
        out, sums = [], []
        for head in range(query.shape[1]):
            group = head // ratio
            slots = self.kept.row(module.layer_idx, group)
            kept = slots.numel()
            plain = torch.arange(count)
            following = kept if self.mode != "original" else old
            moved = torch.arange(following - old, following - old + count)
            moved[slots] = torch.arange(kept) if self.mode == "rerotated" else slots
            seen = torch.ones(count, count, dtype=torch.bool).tril()
            seen[old:, :old] = False
            seen[old:, slots] = True
            q, k, v = query[0, head], key[0, group], value[0, group]
            before, after = (
                rotate(q, *rotary.angles(at, q.device)) @ rotate(k, *rotary.angles(at, q.device)).T
                for at in (plain, moved)
            )
            logits = torch.cat([before[:old], after[old:]]) * options["scaling"]
            weights = logits.masked_fill(~seen, -torch.inf).softmax(-1)
            out.append(weights @ v)
            sums.append(weights[old:].sum(0))
        self.columns.append(torch.stack(sums))
        return torch.stack(out).transpose(0, 1)[None], None


@pytest.mark.parametrize("mode", MODES)
def test_ragged_heads_attend_to_what_they_kept_at_their_own_positions(
    architecture: str, model: Any, device: str, mode: str
) -> None:
    """Logits of new tokens and the sums of their attention, against dense attention (law 7)."""
    ids, new = tokens(OLD), tokens(NEW, seed=1)
    cache = grown(model, mode, ids, collect_scores=True)
    kept = random_ragged(grid_of(cache), PER_HEAD, seed=4)
    assert kept.counts.unique().numel() > 1
    cache.keep(kept)
    found = feed(model, cache, new)
    reference = DenseReference(tiny(architecture), kept, OLD, mode)
    expected = reference.logits(torch.cat([ids, new], 1))
    assert (found - expected).abs().max() < 2e-4 * SLACK[device]
    assert cache.scores is not None
    found = cache.scores.rows("latest").cpu()
    for layer, sums in enumerate(reference.columns):
        ratio = sums.shape[0] // kept.counts.shape[1]
        for head, row in enumerate(sums):
            live = torch.cat([kept.row(layer, head // ratio), torch.arange(OLD, OLD + NEW)])
            columns = found[layer, head]
            assert torch.allclose(columns[-live.numel() :], row[live], atol=1e-4 * SLACK[device])
            assert (columns[: -live.numel()] == 0).all()


def test_a_ragged_prefix_makes_stale_and_rerotated_equal(model: Any, device: str) -> None:
    """Law 2, as far as heads that keep prefixes of their own allow it."""
    ids, new = tokens(OLD), tokens(NEW, seed=1)
    results = []
    for mode in (PositionMode.STALE, PositionMode.REROTATED):
        cache = grown(model, mode, ids)
        counts = grid_of(cache)
        cache.keep(ends(counts, random_ragged(counts, PER_HEAD, 5).counts, last=False))
        results.append(feed(model, cache, new))
    assert (results[0] - results[1]).abs().max() < 1e-4 * SLACK[device]


def test_a_ragged_suffix_makes_original_and_rerotated_equal(model: Any, device: str) -> None:
    """Law 3: each head shifts all its positions by a number of its own."""
    ids, new = tokens(OLD), tokens(NEW, seed=1)
    results = {}
    for mode in MODES:
        cache = grown(model, mode, ids)
        counts = grid_of(cache)
        cache.keep(ends(counts, random_ragged(counts, PER_HEAD, 5).counts, last=True))
        results[mode] = feed(model, cache, new)
    apart = results[PositionMode.ORIGINAL] - results[PositionMode.REROTATED]
    assert apart.abs().max() < 1e-4 * SLACK[device]
    stale = results[PositionMode.ORIGINAL] - results[PositionMode.STALE]
    assert stale.abs().max() > 1e-2, "the weights see positions"


def test_a_constant_added_to_every_position_changes_no_logit_of_a_ragged_cache(
    model: Any, device: str
) -> None:
    """Law 4."""
    ids, new = tokens(OLD), tokens(NEW, seed=1)
    plain, shifted = new_cache(model, "original"), new_cache(model, "original")
    shifted.slot_table.append(777)
    shifted.slot_table.keep(torch.empty(0, dtype=torch.int64))
    results = []
    for cache in (plain, shifted):
        feed(model, cache, ids)
        cache.keep(random_ragged(grid_of(cache), PER_HEAD, 6))
        results.append(feed(model, cache, new))
    assert (results[0] - results[1]).abs().max() < 5e-4 * SLACK[device]


@pytest.mark.parametrize("mode", MODES)
def test_ragged_evictions_in_sequence_equal_one_to_the_last_keep_set(model: Any, mode: str) -> None:
    """Law 5, bit for bit in what is stored, and in the logits."""
    ids, new = tokens(OLD), tokens(NEW, seed=1)
    once, stepwise = (grown(model, mode, ids, collect_scores=True) for _ in range(2))
    rows = [[torch.arange(n) for n in layer] for layer in grid_of(once).tolist()]
    for seed, size in enumerate((51, 50, 33, 12)):
        kept = random_ragged(grid_of(stepwise), size, seed)
        stepwise.keep(kept)
        rows = [
            [row[own] for row, own in zip(*pair, strict=True)]
            for pair in zip(rows, kept.rows(), strict=True)
        ]
    once.keep(RaggedKeepSet.of_rows(rows))
    for index, layers in enumerate(zip(once.layers, stepwise.layers, strict=True)):
        assert torch.equal(layers[0].live_values, layers[1].live_values)
        for group in range(grid_of(once).shape[1]):
            mine, theirs = (each.rotated_head_keys(index, group) for each in (once, stepwise))
            assert torch.equal(mine, theirs)
    assert torch.equal(once.slot_table.token_index, stepwise.slot_table.token_index)
    assert torch.equal(once.slot_table.position, stepwise.slot_table.position)
    assert once.scores is not None and stepwise.scores is not None
    assert torch.equal(once.scores.rows("accumulated"), stepwise.scores.rows("accumulated"))
    assert torch.equal(feed(model, once, new), feed(model, stepwise, new))


@pytest.mark.parametrize("mode", MODES)
def test_a_ragged_keep_set_of_equal_sizes_is_a_keep_set_per_head(
    llama: Any, device: str, mode: str
) -> None:
    draws = torch.Generator().manual_seed(2)
    kept = torch.rand(3, 2, OLD, generator=draws).argsort(-1)[..., :PER_HEAD].sort(-1).values
    results = []
    for each in (kept, RaggedKeepSet.of_rows([list(layer) for layer in kept])):
        cache = grown(llama, mode, tokens(OLD), collect_scores=True)
        share = cache.attention_share_outside(each)
        cache.keep(each)
        logits = feed(llama, cache, tokens(NEW, seed=1))
        assert cache.scores is not None
        found = integrity(cache.slot_table, torch.rand(4, generator=draws.manual_seed(0)), 64)
        results.append(
            (share, logits, cache.scores.rows("latest").cpu(), cache.nbytes, found, cache.size)
        )
    (share, logits, sums, nbytes, found, size), other = results
    assert other[0] == pytest.approx(share)
    assert (other[1] - logits).abs().max() < 1e-4 * SLACK[device]
    assert torch.allclose(other[2], sums, atol=1e-5 * SLACK[device])
    assert (other[3], other[5]) == (nbytes, size)
    for name, value in vars(found).items():
        assert getattr(other[4], name) == pytest.approx(value), name


@pytest.mark.parametrize("mode", MODES)
def test_reported_bytes_are_those_of_the_live_tensors(llama: Any, device: str, mode: str) -> None:
    """Law 6: and no head has more memory than its own slots need."""
    cache = grown(llama, mode, tokens(700))
    for seed, size in enumerate((500, 41, 7)):
        cache.keep(random_ragged(grid_of(cache), size, seed))
        heads = [head for layer in cache.layers for head in layer.heads]
        live = [tensor for head in heads for tensor in (head.live_keys, head.live_values)]
        assert cache.nbytes == sum(tensor.numel() * tensor.element_size() for tensor in live)
        assert cache.nbytes == size * 3 * 2 * 2 * 8 * 4
        buffers = [
            layer.key_buffer.shape[0] if device == "cuda" else sum(h.capacity for h in layer.heads)
            for layer in cache.layers
        ]
        assert all(
            held < sum(row) + 512 * len(row)
            for held, row in zip(buffers, cache.slot_table.counts.tolist(), strict=True)
        )
        feed(llama, cache, tokens(5, seed))
        assert cache.nbytes == (size + 5) * 3 * 2 * 2 * 8 * 4
        assert cache.size == size + 5


@pytest.mark.parametrize("mode", MODES)
def test_keys_do_not_drift_over_many_ragged_evictions(llama: Any, device: str, mode: str) -> None:
    cache = new_cache(llama, mode)
    for seed in range(60 if device == "cpu" else 20):
        feed(llama, cache, tokens(1 + seed % 5, seed))
        cache.keep(random_ragged(grid_of(cache), max(1, cache.size - seed % 4), seed))
        for index, layer in enumerate(cache.layers):
            for group, head in enumerate(layer.heads):
                own = cache.slot_table.row(index, group)
                assert len(own) == head.slots
                angles = cache.rotary.angles(own.position[0, 0], cache.device)
                exact = rotate(head.live_keys, *angles)
                found = cache.rotated_head_keys(index, group)
                assert torch.allclose(found, exact, atol=0 if device == "cpu" else 1e-6)


@pytest.mark.parametrize("mode", MODES)
def test_a_copy_and_a_rollback_leave_a_ragged_cache_as_it_was(llama: Any, mode: str) -> None:
    cache = grown(llama, mode, tokens(OLD), collect_scores=True)
    cache.keep(random_ragged(grid_of(cache), PER_HEAD, 1))
    expected = feed(llama, cache.fork(), tokens(NEW, seed=1))
    with cache.rollback_after():
        feed(llama, cache, tokens(9, seed=3))
    copy = cache.fork()
    copy.keep(random_ragged(grid_of(copy), 5, 2))
    feed(llama, copy, tokens(9, seed=4))
    assert torch.equal(feed(llama, cache, tokens(NEW, seed=1)), expected)


@pytest.mark.parametrize("mode", MODES)
def test_the_latest_scores_are_those_of_the_last_token_if_asked_for(
    llama: Any, device: str, mode: str
) -> None:
    one, other = (grown(llama, mode, tokens(OLD), collect_scores=True) for _ in range(2))
    for cache in (one, other):
        cache.keep(random_ragged(grid_of(cache), PER_HEAD, 1))
    new = tokens(NEW, seed=1)
    with one.feeding(latest_is_last=True):
        feed(llama, one, new)
    feed(llama, other, new[:, :-1])
    feed(llama, other, new[:, -1:])
    assert one.scores is not None and other.scores is not None
    for history in ("latest", "accumulated"):
        found = [each.scores.rows(history).cpu() for each in (one, other)]
        assert torch.allclose(*found, atol=1e-5 * SLACK[device])


@pytest.mark.parametrize("mode", MODES)
def test_ragged_histories_are_replayed_and_measured_head_by_head(mode: PositionMode) -> None:
    """The slot table, the log, and integrity: each head is a history of its own."""
    frequencies = 1 / 10 ** torch.arange(0, 2, 0.5)
    for history in range(40):
        table, log = SlotTable(mode, capacity=4), []
        alone = {(layer, head): SlotTable(mode) for layer in range(3) for head in range(2)}
        counts = torch.zeros(3, 2, dtype=torch.int64)
        for step in range(4):
            new = 3 + (5 * step + history) % 17
            table.append(new)
            counts = counts + new
            size = max(1, int(counts.sum()) // 6 - (history + step) % 9)
            kept = random_ragged(counts, size, 10 * history + step)
            before = table.fork()
            log.append(Eviction(0, step, table.tokens_seen, len(table), kept, 0.0, 0.0))
            table.keep(kept)
            counts = kept.counts
            assert len(table) == size == log[-1].slots_after
            for (layer, head), own in alone.items():
                own.append(new)
                own.keep(kept.row(layer, head))
                found = table.row(layer, head)
                assert torch.equal(found.token_index, own.token_index)
                assert torch.equal(found.position, own.position)
                assert found.next_position == own.next_position
                assert found.next_position == table.next_positions[layer, head]
        again = replay(log, mode, table.tokens_seen)
        assert torch.equal(again.token_index, table.token_index)
        assert torch.equal(again.position, table.position)
        weights = torch.rand(3, 2, table.columns, dtype=torch.float64)
        measured = integrity(table, frequencies, 30, weights)
        same_integrity(
            measured,
            [
                integrity(own, frequencies, 30, weights[place][table.pad[place] :])
                for place, own in alone.items()
            ],
        )
        # Over a reply of 7 tokens in which the last eviction happens.
        reply = integrity_over_reply(before, log[-1:], table.tokens_seen + 7, frequencies, 30)
        by_head = [
            integrity_over_reply(
                before.row(layer, head),
                [replace(log[-1], kept=log[-1].kept.row(layer, head)[None, None])],  # type: ignore[union-attr]
                table.tokens_seen + 7,
                frequencies,
                30,
            )
            for layer, head in alone
        ]
        same_integrity(reply, by_head)


def same_integrity(found: Integrity, of_heads: list[Integrity]) -> None:
    """Each value is the mean over the heads; missing if it is missing in one of them."""
    for name, value in asdict(found).items():
        values = [getattr(one, name) for one in of_heads]
        if None in values:
            assert value is None
        else:
            assert value == pytest.approx(sum(values) / len(values), rel=1e-12, abs=1e-12), name


def test_the_eviction_log_has_a_row_for_each_head_with_its_own_numbers() -> None:
    kept = RaggedKeepSet.of_rows(
        [[torch.tensor([0, 1, 5]), torch.tensor([4])], [torch.tensor([2, 3]), torch.tensor([0, 5])]]
    )
    assert kept.per_head == 2
    with pytest.raises(ValueError, match="whole number"):
        RaggedKeepSet.of_rows([[torch.tensor([0]), torch.tensor([0, 1])]])
    log = [Eviction(0, 0, 6, 6, kept, 0.0, 0.0)]
    frame = evictions_frame(log, PositionMode.REROTATED)
    assert frame["group"].to_list() == ["head:0:0", "head:0:1", "head:1:0", "head:1:1"]
    assert frame["slots_before"].to_list() == [6] * 4
    assert frame["slots_after"].to_list() == [3, 1, 2, 2]
    assert frame["next_position"].to_list() == [3, 1, 2, 2]
    assert frame["token_spans"][0].to_list() == [{"start": 0, "stop": 2}, {"start": 5, "stop": 6}]
    with pytest.raises(ValueError, match="whole number"):
        RaggedKeepSet(kept.slots[:-1], kept.counts - torch.tensor([[0, 0], [0, 1]]))
    fits = RaggedKeepSet.of_rows(
        [[torch.tensor([0, 4]), torch.tensor([2])], [torch.tensor([3]), torch.tensor([0, 1, 2, 3])]]
    )
    second = evictions_frame([*log, Eviction(0, 1, 8, 4, fits, 0.0, 0.0)], PositionMode.ORIGINAL)
    assert second["slots_before"].to_list()[4:] == [5, 3, 4, 4]
    assert second["next_position"].to_list() == [6] * 4 + [8] * 4
    tokens_kept = [[(s["start"], s["stop"]) for s in row] for row in second["token_spans"][4:]]
    assert tokens_kept == [[(0, 1), (7, 8)], [(7, 8)], [(7, 8)], [(0, 1), (5, 8)]]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([[[0, 2], [1, 1]], [[0, 1], [0, 1]]], "sorted and without repeats"),
        ([[[0, 2], [3, 1]], [[0, 1], [0, 1]]], "sorted and without repeats"),
        ([[[0, 9], [1, 2]], [[0, 1], [0, 1]]], "outside those of its kv head"),
        ([[[0, 2], [-1, 1]], [[0, 1], [0, 1]]], "outside those of its kv head"),
    ],
)
def test_a_ragged_keep_set_that_cannot_be_followed_is_refused(rows: Any, message: str) -> None:
    table = SlotTable(PositionMode.STALE)
    table.append(6)
    kept = RaggedKeepSet.of_rows([[torch.tensor(row) for row in layer] for layer in rows])
    with pytest.raises(ValueError, match=message):
        table.keep(kept)
    assert len(table) == 6 and not table.is_ragged


@given(
    st.lists(st.floats(0, 1e6), min_size=6, max_size=6),
    st.lists(st.integers(0, 40), min_size=6, max_size=6),
    st.lists(st.integers(0, 40), min_size=6, max_size=6),
    st.floats(0, 1),
)
def test_apportion_keeps_total_bounds_and_proportion(
    shares: list[float], low: list[int], extra: list[int], where: float
) -> None:
    least = torch.tensor(low).view(3, 2)
    most = least + torch.tensor(extra).view(3, 2)
    total = int(least.sum() + where * (most - least).sum())
    found = apportion(torch.tensor(shares).view(3, 2), total, least, most)
    assert int(found.sum()) == total
    assert (found >= least).all() and (found <= most).all()


def test_apportion_by_hand() -> None:
    def counts(shares: list[float], total: int, low: int, high: int) -> list[int]:
        grid = torch.ones(1, len(shares), dtype=torch.int64)
        return apportion(torch.tensor([shares]), total, low * grid, high * grid)[0].tolist()

    assert counts([27, 33, 30], 90, 1, 120) == [27, 33, 30]
    assert counts([1, 1, 1], 10, 1, 9) == [4, 3, 3]
    assert counts([8, 1, 1], 30, 1, 12) == [12, 9, 9]
    assert counts([98, 1, 1], 30, 5, 40) == [20, 5, 5]
    assert counts([0, 0, 1], 10, 1, 6) == [2, 2, 6]


SMALL = {
    "adakv": {"policy": {"kind": "snapkv", "window": 4}},
    "pyramidkv": {"policy": {"kind": "snapkv", "window": 2}, "beta": 4},
    "simlayerkv": {"threshold": 0.3, "sinks": 2, "recent": 4},
    "kvzip": {"chunk": 10, "sinks": 2},
    "duo_attention": {"sinks": 2, "recent": 8},
}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("trigger", ["turn", "prompt", "step"])
@pytest.mark.parametrize("kind", RAGGED)
def test_ragged_policies_evict_again_and_again(
    kind: str, trigger: str, mode: str, llama: Any, device: str
) -> None:
    """Caches that are ragged already, with protected prompts; logits stay finite."""
    if device == "cuda" and mode != MODES[RAGGED.index(kind) % 3]:
        pytest.skip("each policy in one mode: the kernels do not know of policies")
    policy = build_policy(kind, SMALL.get(kind, {}))
    evictor = Evictor(policy, EvictionSchedule(trigger, 40, 24))
    cache = new_cache(calibrated(llama, policy), mode, evictor=evictor)
    for turn in range(6):
        evictor.before_turn(cache)
        feed(llama, cache, tokens(13, turn))
        evictor.after_prompt(cache, (cache.size - 13, cache.size))
        if evictor.log and evictor.log[-1].tokens_seen == cache.slot_table.tokens_seen:
            rows = cache.slot_table.token_index[..., -13:]
            assert trigger != "prompt" or (rows.diff(dim=-1) == 1).all(), "the prompt survives"
        for step in range(9):
            logits = feed(llama, cache, tokens(1, step))
            assert logits.isfinite().all()
    assert len(evictor.log) >= 3
    assert {eviction.slots_after for eviction in evictor.log} == {24}
    # Whether layers of random weights are lazy depends on the mode.
    unequal = [eviction.kept.counts.unique().numel() > 1 for eviction in evictor.log]
    assert any(unequal) or kind == "simlayerkv"
    assert cache.nbytes == cache.size * 3 * 2 * 2 * 8 * 4


def test_adakv_without_differences_to_share_out_is_the_policy_that_it_wraps() -> None:
    """With a safeguard of 1 every head keeps a uniform budget."""
    view = random_view(50, 12)
    kept = build_policy("adakv", {"policy": "keydiff", "safeguard": 1.0}).keep(view)
    uniform = build_policy("keydiff", {}).keep(view)
    assert isinstance(kept, RaggedKeepSet) and isinstance(uniform, Tensor)
    assert torch.equal(torch.stack([torch.stack(layer) for layer in kept.rows()]), uniform)


def test_adakv_keeps_the_best_slots_of_a_layers_heads_together() -> None:
    view = random_view(50, 12)
    kept = build_policy("adakv", {"policy": "knorm", "safeguard": 0.0}).keep(view)
    assert isinstance(kept, RaggedKeepSet)
    for layer, row in enumerate(kept.rows()):
        norms = view.layers[layer].keys.norm(dim=-1)
        best = (-norms).flatten().topk(24).indices
        expected = [sorted((best[best // 50 == head] % 50).tolist()) for head in range(2)]
        assert [own.tolist() for own in row] == expected


def test_simlayerkv_gives_lazy_layers_few_slots() -> None:
    """Written out: the share of the latest query's attention, above or not above the threshold."""
    view = random_view(60, 20)
    shares = []
    for layer in range(2):
        weights = view.window_attention(layer)[:, -1].double()
        shares.append(float((weights[:, :2].sum(-1) + weights[:, -6:].sum(-1)).mean()))
    middle = sum(shares) / 2
    options = {"sinks": 2, "recent": 6}
    kept = build_policy("simlayerkv", {"threshold": middle, **options}).keep(view)
    assert isinstance(kept, RaggedKeepSet)
    lazy = 0 if shares[0] > shares[1] else 1
    assert kept.counts[lazy].tolist() == [8, 8] and kept.counts[1 - lazy].tolist() == [32, 32]
    assert kept.row(lazy, 0).tolist() == [0, 1, *range(54, 60)]
    for none_or_all in (0.0, 1.0):
        even = build_policy("simlayerkv", {"threshold": none_or_all, **options}).keep(view)
        assert isinstance(even, RaggedKeepSet) and (even.counts == 20).all()


def test_a_uniform_policy_refuses_a_ragged_cache_and_a_wrapper_a_ragged_policy(llama: Any) -> None:
    cache = grown(llama, "rerotated", tokens(OLD))
    cache.keep(random_ragged(grid_of(cache), PER_HEAD, 1))
    with pytest.raises(UserError, match="policy knorm keeps as many slots in every kv head"):
        build_policy("knorm", {}).keep(view_of(cache, 9, 0))
    with pytest.raises(UserError, match="wrap protect in adakv"):
        build_policy("protect", {"policy": "adakv"})


FUNNEL = """
from dataclasses import dataclass
from typing import ClassVar
import torch
from kvfidelity import Policy

@dataclass(frozen=True)
class Funnel(Policy):
    kind: ClassVar[str] = "funnel"
    ragged: ClassVar[bool] = True
    def priority(self, view):
        return torch.stack([-layer.keys.float().norm(dim=-1) for layer in view.layers])
    def shares(self, view, rank):
        RETURN
"""


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        ("torch.ones(4, 3)", r"its shares are \[4, 3\]; they must be \[2, 2\]"),
        ("[1.0]", "its shares are list"),
        ("torch.tensor(float('nan'))", "its shares must be finite, at least 0 and not all 0"),
        ("torch.zeros(2, 2)", "its shares must be finite, at least 0 and not all 0"),
        ("-torch.ones(2, 2)", "its shares must be finite, at least 0 and not all 0"),
    ],
)
def test_shares_that_cannot_be_followed_are_refused_by_the_policys_name(
    tmp_path: Path, returned: str, message: str
) -> None:
    file = tmp_path / "mine.py"
    file.write_text(FUNNEL.replace("RETURN", f"return {returned}"))
    with pytest.raises(UserError, match=f"^policy funnel: {message}"):
        build_policy("funnel", {}, [file]).keep(random_view(30, 9))


def test_shares_of_a_policy_of_your_own_are_followed(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text(FUNNEL.replace("RETURN", "return torch.linspace(3, 1, view.grid[0])[:, None]"))
    kept = build_policy("funnel", {}, [file]).keep(random_view(60, 10))
    assert isinstance(kept, RaggedKeepSet)
    assert kept.counts.tolist() == [[15, 15], [5, 5]]


def test_a_ragged_keep_set_of_a_policy_that_declares_none_is_refused(
    tmp_path: Path, llama: Any
) -> None:
    file = tmp_path / "mine.py"
    file.write_text(
        FUNNEL.replace("RETURN", "pass").replace("ragged: ClassVar[bool] = True", "")
        + "    def keep(self, view):\n"
        "        from kvfidelity.cache.ragged import RaggedKeepSet\n"
        "        return RaggedKeepSet.of_rows([[torch.arange(9), torch.arange(11)]] * 3)\n"
    )
    evictor = Evictor(build_policy("funnel", {}, [file]), EvictionSchedule("turn", 40, 10))
    cache = grown(llama, "stale", tokens(OLD))
    with pytest.raises(UserError, match=r"^policy funnel: its keep set is ragged; it must declare"):
        evictor.before_turn(cache)
    assert cache.size == OLD
