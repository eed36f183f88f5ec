"""Healings: each equals nothing where it should, and what it says where it acts."""

from __future__ import annotations

import dataclasses
import math
from typing import Any, ClassVar

import pytest
import torch

from kvfidelity.cache.attach import attach, new_cache
from kvfidelity.cache.evictor import EvictionSchedule, Evictor
from kvfidelity.cache.healing import Choice, FedMessages, Healing, build_healing, known_healings
from kvfidelity.cache.healing.changed_attention import ChangedAttention
from kvfidelity.cache.healing.gaps import gaps_of, largest
from kvfidelity.cache.healing.neutral_text import neutral_text
from kvfidelity.cache.healing.notice import NOTICE
from kvfidelity.cache.healing.window import window_logits, window_queries
from kvfidelity.cache.hooks import cache_argument, output_logits
from kvfidelity.cache.managed import ManagedCache
from kvfidelity.cache.policies import Policy, build_policy
from kvfidelity.cache.positions import PositionMode
from kvfidelity.cache.tree import TokenTree, TreeCache
from kvfidelity.cache.view import CacheView
from kvfidelity.errors import UserError
from tests.cache.conftest import tiny
from tests.cache.test_laws import feed, tokens

MODES = list(PositionMode)
SHARED = {"kind": "streaming_llm", "sinks": 3}
BY_HEAD = {"kind": "knorm"}
LENGTH, TARGET = 60, 24


@pytest.fixture(autouse=True)
def _no_grad() -> Any:
    with torch.inference_mode():
        yield


def evicted(
    model: Any,
    mode: str,
    healing: Healing,
    policy: dict[str, Any] = SHARED,
    target: int = TARGET,
    scores: bool = False,
) -> tuple[ManagedCache, Evictor]:
    """A cache of LENGTH tokens after one eviction with a healing."""
    own = {key: value for key, value in policy.items() if key != "kind"}
    schedule = EvictionSchedule("turn", LENGTH, target)
    evictor = Evictor(build_policy(policy["kind"], own), schedule, 0, healing)
    cache = new_cache(model, mode, evictor=evictor, collect_scores=scores)
    ids = tokens(LENGTH)
    feed(model, cache, ids)
    evictor.messages = FedMessages(
        lambda other, more: feed(model, other, torch.tensor([list(more)]))
    )
    assert evictor.before_turn(cache) is not None
    return cache, evictor


def difference(model: Any, one: ManagedCache, other: ManagedCache) -> float:
    new = tokens(11, seed=5)
    return float((feed(model, one, new) - feed(model, other, new)).abs().max())


@pytest.mark.parametrize("policy", [SHARED, BY_HEAD], ids=["shared", "head"])
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    ("kind", "parameters"), [("merge", {"weight": 0.0}), ("logit_scale", {"strength": 0.0})]
)
def test_a_healing_of_no_strength_equals_none(
    model: Any, kind: str, parameters: dict[str, float], mode: str, policy: dict[str, Any]
) -> None:
    cache, _ = evicted(model, mode, build_healing(kind, parameters), policy)
    plain, _ = evicted(model, mode, build_healing("none"), policy)
    assert difference(model, cache, plain) < 1e-4


@pytest.mark.parametrize("policy", [SHARED, BY_HEAD], ids=["shared", "head"])
def test_a_ghost_slot_of_no_mass_equals_none(model: Any, policy: dict[str, Any]) -> None:
    """At true positions, where a slot that receives nothing changes nothing. It still fills a slot,
    so it equals the eviction to as many real slots as it leaves."""
    ghost, evictor = evicted(model, "original", build_healing("ghost_slot", {"mass": 0.0}), policy)
    slots = evictor.log[0].healed.slots
    assert slots >= 1 and ghost.size == TARGET
    plain, _ = evicted(model, "original", build_healing("none"), policy, TARGET - slots)
    assert difference(model, ghost, plain) < 1e-4


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("kind", ["merge", "logit_scale", "ghost_slot"])
def test_a_healing_changes_what_the_model_says(llama: Any, kind: str, mode: str) -> None:
    healed, _ = evicted(llama, mode, build_healing(kind))
    plain, _ = evicted(llama, mode, build_healing("none"))
    assert difference(llama, healed, plain) > 1e-3


def test_a_ghost_holds_the_mean_of_what_it_stands_for(llama: Any) -> None:
    whole = new_cache(llama, "original")
    feed(llama, whole, tokens(LENGTH))
    cache, evictor = evicted(llama, "original", build_healing("ghost_slot"))
    (eviction,) = evictor.log
    assert eviction.healing == "ghost_slot" and eviction.healed.slots == 1
    gap = (3, LENGTH - (TARGET - 1 - 3))  # three sinks, one ghost, the rest recent
    middle = (gap[0] + gap[1] - 1) // 2
    assert cache.slot_table.token_index[0, 0, 3] == middle
    for layer, before in zip(cache.layers, whole.layers, strict=True):
        for name in ("rotated_keys", "live_values"):
            mean = getattr(before, name)[:, gap[0] : gap[1]].mean(1)
            torch.testing.assert_close(getattr(layer, name)[:, 3], mean)
    assert cache.changed_attention is not None
    assert cache.changed_attention.counts is not None
    assert (cache.changed_attention.counts[:, :, 3] == gap[1] - gap[0]).all()
    assert cache.nbytes == sum(layer.nbytes for layer in cache.layers) + eviction.healed.nbytes


def test_a_ghost_receives_the_mass_that_its_gap_received(llama: Any) -> None:
    """The latest queries, asked again after the eviction, give it what they gave the gap."""
    attach(llama)
    healing = build_healing("ghost_slot", {"window": 1})
    whole = new_cache(llama, "original", query_window=1)
    feed(llama, whole, tokens(LENGTH))
    cache, _ = evicted(llama, "original", healing)
    gap = slice(3, LENGTH - (TARGET - 1 - 3))
    for layer in range(len(cache.layers)):
        queries = window_queries(whole, layer, 1)
        before = window_logits(whole, layer, queries).softmax(-1)[:, 0, gap].sum(-1)
        after = window_logits(cache, layer, queries).softmax(-1)[:, 0, 3]
        torch.testing.assert_close(after, before, rtol=1e-4, atol=1e-6)


def ghost_logits(cache: ManagedCache) -> torch.Tensor:
    """Of the latest query at every ghost, by layer and query head, in the order of slots."""
    changed, rows = cache.changed_attention, []
    assert changed is not None and changed.ghosts is not None
    for layer in range(len(cache.layers)):
        logits = window_logits(cache, layer, window_queries(cache, layer, 1))[:, 0]
        ratio = logits.shape[0] // changed.ghosts.shape[1]
        ghosts = changed.ghosts_of(layer, changed.ghosts.shape[1], cache.size)
        rows.append(logits[ghosts.repeat_interleave(ratio, 0)])
    return torch.cat(rows)


@pytest.mark.parametrize("policy", [SHARED, BY_HEAD], ids=["shared", "head"])
@pytest.mark.parametrize("mode", [*MODES, PositionMode("shifted-24"), PositionMode("shifted+64")])
def test_a_ghost_has_the_same_logit_in_every_position_mode(
    model: Any, mode: str, policy: dict[str, Any]
) -> None:
    """At one eviction and at the next, whatever happens to the positions of other survivors."""
    healing = build_healing("ghost_slot", {"window": 1})
    found = []
    for each in ("original", mode):
        cache, _ = evicted(model, each, healing, policy)
        found.append([ghost_logits(cache)])
        # The next eviction keeps the ghost of a policy that keeps all but the middle.
        latest = cache.fork()
        kept = torch.cat([torch.arange(8), torch.arange(12, TARGET)])
        choice = Choice(kept, torch.zeros(1, 1, 0, dtype=torch.int64))
        read = healing.read(latest, choice)
        latest.keep(kept)
        healing.write(latest, read, None)
        found[-1].append(ghost_logits(latest))
    for original, other in zip(*found, strict=True):
        torch.testing.assert_close(other, original, rtol=1e-3, atol=1e-4)


def test_a_ghost_that_is_evicted_counts_as_the_tokens_it_stands_for(llama: Any) -> None:
    cache, evictor = evicted(llama, "original", build_healing("ghost_slot"))
    feed(llama, cache, tokens(LENGTH - TARGET, seed=2))
    assert evictor.before_turn(cache) is not None
    assert cache.changed_attention is not None and cache.changed_attention.counts is not None
    seen = 2 * LENGTH - TARGET
    assert (cache.changed_attention.counts.sum(-1) == seen).all(), "no token is counted twice"
    held = TARGET - 1  # the other slot is the ghost, which takes in the one before
    assert [each.tokens_evicted for each in evictor.log] == [LENGTH - held, LENGTH - TARGET]
    assert sum(each.tokens_evicted for each in evictor.log) == seen - held


@pytest.mark.parametrize("policy", [SHARED, BY_HEAD], ids=["shared", "head"])
def test_tokens_that_are_gone_and_those_that_slots_hold_are_all_that_were_seen(
    llama: Any, policy: dict[str, Any]
) -> None:
    """Ghosts that stay, that are evicted and that stand for one token: none holds a token."""
    cache, evictor = evicted(llama, "original", build_healing("ghost_slot"), policy)
    for seed in (2, 3):
        feed(llama, cache, tokens(LENGTH - TARGET, seed=seed))
        assert evictor.before_turn(cache) is not None
    gone = sum(each.tokens_evicted for each in evictor.log)
    held = cache.size - cache.ghosts_per_head
    assert gone + held == pytest.approx(cache.slot_table.tokens_seen, abs=len(evictor.log) / 2)


@pytest.mark.parametrize("scores", [False, True], ids=["plain", "scored"])
def test_a_fork_a_tree_and_single_tokens_see_the_same_changed_attention(
    llama: Any, scores: bool
) -> None:
    cache, _ = evicted(llama, "original", build_healing("ghost_slot"), scores=scores)
    new = tokens(5, seed=4)
    fork, one_by_one = cache.fork(), cache.fork()
    tree = TokenTree()
    tree.extend(new[0].tolist())
    decoder = llama.get_decoder()
    name = cache_argument(decoder)
    hidden = decoder(input_ids=new, use_cache=True, **{name: TreeCache(cache, tree)})
    by_tree = output_logits(llama, hidden.last_hidden_state[0])
    by_fork = feed(llama, fork, new)
    steps = torch.cat([feed(llama, one_by_one, token) for token in new.split(1, dim=1)])
    whole = feed(llama, cache, new)
    for found in (by_tree, by_fork, steps):
        assert (found - whole).abs().max() < 1e-4
    if scores:
        assert cache.scores is not None and one_by_one.scores is not None
        one, other = (each.scores.rows("accumulated") for each in (cache, one_by_one))
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize(
    "policy", [SHARED, {"kind": "random", "keep_ratio": 0.5}], ids=["spans", "scattered"]
)
def test_refresh_equals_a_fresh_run_of_the_kept_text(
    architecture: str, policy: dict[str, Any]
) -> None:
    """Against Hugging Face's own forward over the kept tokens and the new ones."""
    model = tiny(architecture)
    cache, evictor = evicted(model, "rerotated", build_healing("refresh"), policy)
    kept = cache.slot_table.token_index[0, 0]
    assert kept.numel() == TARGET
    new = tokens(11, seed=5)
    found = feed(model, cache, new)
    text = torch.cat([tokens(LENGTH)[:, kept], new], 1)
    reference = tiny(architecture)(text).logits[0, TARGET:]
    assert (found - reference).abs().max() < 1e-4
    assert cache.slot_table.tokens_seen == LENGTH + 11, "what was seen is still known"
    assert evictor.log[0].healed.slots == 0


def test_refresh_again_equals_a_fresh_run_of_what_is_kept_then(llama: Any) -> None:
    cache, evictor = evicted(llama, "rerotated", build_healing("refresh"))
    more = tokens(LENGTH - TARGET, seed=2)
    feed(llama, cache, more)
    assert evictor.before_turn(cache) is not None
    kept = cache.slot_table.token_index[0, 0]
    new = tokens(7, seed=6)
    found = feed(llama, cache, new)
    text = torch.cat([torch.cat([tokens(LENGTH), more], 1)[:, kept], new], 1)
    reference = tiny("llama")(text).logits[0, TARGET:]
    assert (found - reference).abs().max() < 1e-4


def test_a_notice_stays_inside_the_budget_and_is_fed_after_the_kept_part(llama: Any) -> None:
    healing = build_healing("notice", {"ids": (5, 6, 7, 8)})
    cache, evictor = evicted(llama, "rerotated", healing)
    assert cache.size == TARGET
    assert cache.slot_table.tokens_seen == LENGTH + 4
    assert evictor.messages is not None and evictor.messages.starts == [LENGTH]
    assert (evictor.log[0].healed.slots, evictor.log[0].healed.tokens) == (4, 4)
    plain, _ = evicted(llama, "rerotated", build_healing("none"), target=TARGET - 4)
    feed(llama, plain, torch.tensor([[5, 6, 7, 8]]))
    assert difference(llama, cache, plain) < 1e-5


def words(text: str) -> tuple[int, ...]:
    """A tokenizer by whitespace."""
    return tuple(range(len(text.split())))


def test_the_control_of_a_notice_is_as_long_and_says_something_else() -> None:
    text = neutral_text(words)
    assert len(words(text)) == len(words(NOTICE))
    assert not {"removed", "conversation", "earlier"} & set(text.lower().split())
    assert build_healing("neutral_text").prepared(words).choose(
        lambda budget: torch.arange(budget), 40, 60
    ).kept.numel() == 40 - len(words(NOTICE))


def test_what_stands_in_the_message_stands_before_it() -> None:
    said = build_healing("notice_in_message").message("And then?")
    assert said.endswith("\n\nAnd then?") and said.startswith(NOTICE)
    neutral = build_healing("neutral_in_message").prepared(words)
    assert len(words(neutral.message("And then?"))) == len(words(said))
    assert build_healing("none").message("And then?") == "And then?"


def test_a_tokenizer_without_a_text_of_that_length_is_refused() -> None:
    with pytest.raises(UserError, match="leave the healing out"):
        neutral_text(lambda text: (0,) * (99 if text == NOTICE else 1))


@pytest.mark.parametrize(
    ("kind", "trigger", "positions", "on_gpu", "message"),
    [
        ("notice", "step", "stale", False, "set trigger: turn, not step"),
        ("notice_in_message", "prompt", "stale", False, "set trigger: turn, not prompt"),
        ("refresh", "turn", "stale", False, "set positions: rerotated, not stale"),
        ("ghost_slot", "step", "stale", True, "set trigger: turn or prompt"),
    ],
)
def test_a_setting_that_a_healing_cannot_act_under_is_refused(
    kind: str, trigger: str, positions: str, on_gpu: bool, message: str
) -> None:
    with pytest.raises(UserError, match=message):
        build_healing(kind).check(trigger, positions, on_gpu=on_gpu)


@pytest.mark.parametrize(
    ("kind", "parameters"),
    [("knorm", {}), ("tova", {}), ("h2o", {}), ("hybrid", {"granularity": "head"})],
)
def test_refresh_refuses_keep_sets_that_are_no_text_before_anything_is_fed(
    kind: str, parameters: dict[str, Any]
) -> None:
    policy, schedule = build_policy(kind, parameters), EvictionSchedule("turn", LENGTH, TARGET)
    refused = rf"one keep set for the whole cache, and {kind} keeps .* granularity shared"
    with pytest.raises(UserError, match=refused):
        Evictor(policy, schedule, 0, build_healing("refresh"))
    with pytest.raises(UserError, match=refused):
        build_healing("refresh").check("turn", "rerotated", on_gpu=False, policy=policy)


@dataclasses.dataclass(frozen=True)
class Undeclared(Policy):
    """Ranks by kv head and does not say so."""

    kind: ClassVar[str] = "undeclared"

    def priority(self, view: CacheView) -> torch.Tensor:
        return view.layers[0].keys.norm(dim=-1).expand(*view.grid, -1)


def test_refresh_refuses_what_a_policy_did_not_declare(llama: Any) -> None:
    schedule = EvictionSchedule("turn", LENGTH, TARGET)
    evictor = Evictor(Undeclared(), schedule, 0, build_healing("refresh"))
    cache = new_cache(llama, "rerotated", evictor=evictor)
    feed(llama, cache, tokens(LENGTH))
    with pytest.raises(UserError, match="this policy keeps other tokens in each layer"):
        evictor.before_turn(cache)


def test_healings_that_edit_slots_refuse_budgets_that_differ(llama: Any) -> None:
    with pytest.raises(UserError, match="healing merge needs as many slots"):
        evicted(llama, "stale", build_healing("merge"), {"kind": "adakv"})


def test_a_healing_and_a_policy_that_exclude_each_other_are_refused_before_anything_is_fed() -> (
    None
):
    schedule = EvictionSchedule("turn", LENGTH, TARGET)
    with pytest.raises(UserError, match="healing ghost_slot needs as many slots"):
        Evictor(build_policy("adakv", {}), schedule, 0, build_healing("ghost_slot"))


@pytest.mark.parametrize("policy", [SHARED, BY_HEAD], ids=["shared", "head"])
@pytest.mark.parametrize("prompt", [20, TARGET - 1, TARGET, 40])
def test_ghosts_take_only_the_slots_that_a_protected_prompt_leaves(
    llama: Any, prompt: int, policy: dict[str, Any]
) -> None:
    """A prompt as large as the target leaves none, and then nothing changes attention."""
    kept = build_policy(policy["kind"], {k: v for k, v in policy.items() if k != "kind"})
    schedule = EvictionSchedule("prompt", LENGTH, TARGET)
    evictor = Evictor(kept, schedule, 0, build_healing("ghost_slot"))
    cache = new_cache(llama, "rerotated", evictor=evictor)
    feed(llama, cache, tokens(LENGTH))
    eviction = evictor.after_prompt(cache, (LENGTH - prompt, LENGTH))
    assert eviction is not None
    assert cache.size == max(TARGET, prompt)
    held = cache.slot_table.token_index[..., -prompt:]
    assert (held == torch.arange(LENGTH - prompt, LENGTH)).all(), "the prompt is whole"
    if prompt >= TARGET:
        assert eviction.healed.slots == 0 and cache.changed_attention is None
    else:
        assert 0 < eviction.healed.slots <= TARGET - prompt
    feed(llama, cache, tokens(5))


@pytest.mark.parametrize("policy", [SHARED, BY_HEAD], ids=["shared", "head"])
def test_the_evicted_share_of_attention_counts_what_ghosts_stand_for(
    llama: Any, policy: dict[str, Any]
) -> None:
    """As of the eviction to as many slots as hold a token."""
    _, ghost = evicted(llama, "original", build_healing("ghost_slot"), policy, scores=True)
    real = TARGET - ghost.log[0].healed.slots
    _, plain = evicted(llama, "original", build_healing("none"), policy, real, scores=True)
    assert ghost.log[0].tokens_evicted == plain.log[0].tokens_evicted
    assert ghost.log[0].attention_share == pytest.approx(plain.log[0].attention_share)


def test_token_ids_that_are_not_all_known_are_refused(llama: Any) -> None:
    policy, schedule = build_policy("streaming_llm", {}), EvictionSchedule("turn", LENGTH, TARGET)
    evictor = Evictor(policy, schedule, 0, build_healing("refresh"))
    for cache in (new_cache(llama, "rerotated"), new_cache(llama, "rerotated", evictor=evictor)):
        feed(llama, cache, tokens(LENGTH))
        missing = (
            "keep its text: make it with" if cache.transcript is None else r"evictor\.messages"
        )
        with pytest.raises(UserError, match=missing):
            evictor.before_turn(cache.fork())
    evictor.messages = FedMessages(lambda other, more: None)
    assert cache.transcript is not None and cache.transcript.ids == tokens(LENGTH)[0].tolist()
    del cache.transcript.ids[-1]
    with pytest.raises(ValueError, match=f"{LENGTH - 1} token ids are known.*seen {LENGTH}"):
        evictor.before_turn(cache)


def test_an_unknown_healing_is_refused_with_the_nearest() -> None:
    with pytest.raises(UserError, match=r"unknown healing 'ghost_slots'.*ghost_slot"):
        build_healing("ghost_slots")


def test_the_largest_gaps_are_found() -> None:
    gaps = gaps_of(torch.tensor([0, 1, 5, 6, 8, 20]), 25)
    assert gaps.tolist() == [[2, 5], [7, 8], [9, 20], [21, 25]]
    assert largest(gaps, 2).tolist() == [[9, 20], [21, 25]]


@pytest.mark.parametrize("kind", known_healings())
def test_every_healing_is_documented_and_frozen(kind: str) -> None:
    healing = known_healings()[kind]
    assert healing.__doc__ and not healing.__doc__.startswith(healing.__name__ + "(")
    with pytest.raises(dataclasses.FrozenInstanceError):
        build_healing(kind).kind = "other"  # type: ignore[misc]


def test_the_scale_is_the_quotient_of_the_logarithms(llama: Any) -> None:
    cache, _ = evicted(llama, "original", build_healing("logit_scale"))
    assert cache.changed_attention is not None
    assert math.isclose(cache.changed_attention.factor, math.log(LENGTH) / math.log(TARGET))


@pytest.mark.parametrize("new", [1, 7, 20])
def test_changed_attention_is_the_softmax_of_scaled_logits_with_a_bias(new: int) -> None:
    """Against one written out, grouped queries and several tiles included."""
    rng = torch.Generator().manual_seed(0)
    query = torch.randn(4, new, 6, generator=rng)
    key, value = (torch.randn(2, 30, 6, generator=rng) for _ in range(2))
    bias = torch.randn(1, 4, 25, generator=rng)
    bias[0, 1, 3] = -torch.inf
    out, sums, last = ChangedAttention(1.3, bias).attend(0, query, key, value, 0.4)
    keys, values = (part.repeat_interleave(2, dim=0) for part in (key, value))
    logits = 1.3 * 0.4 * query @ keys.transpose(1, 2)
    logits[..., :25] += bias[0, :, None]
    order = torch.arange(30)
    logits = logits.masked_fill(order > order[-new:, None], -torch.inf)
    weights = logits.softmax(-1)
    torch.testing.assert_close(out, weights @ values)
    torch.testing.assert_close(sums, weights.sum(1))
    torch.testing.assert_close(last, weights[:, -1])
