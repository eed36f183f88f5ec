"""When evictions happen, and law 8: the paper's known arithmetic."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest
import torch

from kvfidelity.cache.attach import new_cache
from kvfidelity.cache.evictor import EvictionSchedule, Evictor, Trigger
from kvfidelity.cache.hooks import cache_argument
from kvfidelity.cache.managed import ManagedCache
from kvfidelity.cache.policies import build_policy, known_policies
from kvfidelity.errors import UserError
from tests.cache.calibrated import calibrated


@pytest.fixture(autouse=True)
def _no_grad() -> Any:
    with torch.inference_mode():
        yield


def feed(model: Any, cache: ManagedCache, count: int) -> None:
    ids = torch.randint(3, 97, (1, count), generator=torch.Generator().manual_seed(count))
    decoder = model.get_decoder()
    decoder(ids, use_cache=True, **{cache_argument(decoder): cache})


def test_the_papers_setting_gives_the_papers_arithmetic(llama: Any) -> None:
    """Law 8: 4,800 slots, 99%, stale positions, 8,000 tokens of prefill, 256 steps."""
    cache = new_cache(llama, "stale", collect_scores=True)
    evictor = Evictor(
        build_policy("attention_top", {"keep_ratio": 0.99}), EvictionSchedule(Trigger.PAPER, 4800)
    )
    feed(llama, cache, 8000)
    next_positions = []
    for _ in range(256):
        evictor.before_step(cache)
        next_positions.append(cache.slot_table.next_position)
        feed(llama, cache, 1)
    of_prefill = (cache.slot_table.token_index < 8000).sum().item() / 8000
    assert of_prefill == pytest.approx(0.59, abs=0.03)  # which of them, the scores decide
    under = next(i for i, position in enumerate(next_positions) if position < 4800)
    fall = next_positions[: under + 1]
    assert all(later < sooner for sooner, later in itertools.pairwise(fall))
    assert set(next_positions[under:]) == set(range(4752, 4800)), "the 48 values under 4,800"
    survivors = cache.slot_table.position[0, 0][cache.slot_table.token_index[0, 0] < 8000]
    assert (survivors >= cache.slot_table.next_position).any(), "old keys ahead of new queries"


def test_before_a_turn_the_papers_policies_have_no_scores(llama: Any) -> None:
    """attention_top waits, attention_bottom draws, the others act."""
    schedule = EvictionSchedule(Trigger.PAPER, 50)
    sizes = {}
    papers: dict[str, dict[str, Any]] = {
        "attention_top": {"keep_ratio": 0.9},
        "attention_bottom": {"keep_ratio": 0.9},
        "sliding_window": {"keep_ratio": 0.9},
        "sliding_window_gist": {"gist_tokens": 20},
        "random": {"keep_ratio": 0.9},
    }
    for kind, parameters in papers.items():
        cache = new_cache(llama, "stale", collect_scores=True)
        feed(llama, cache, 60)
        Evictor(build_policy(kind, parameters), schedule).before_turn(cache)
        sizes[kind] = cache.size
    assert sizes == {
        "attention_top": 60,
        "attention_bottom": 54,
        "sliding_window": 54,
        "sliding_window_gist": 20,
        "random": 54,
    }


def test_under_the_papers_trigger_gist_loses_the_current_prompt(llama: Any) -> None:
    cache = new_cache(llama, "stale")
    evictor = Evictor(
        build_policy("sliding_window_gist", {"gist_tokens": 40}),
        EvictionSchedule(Trigger.PAPER, 90),
    )
    feed(llama, cache, 70)
    evictor.before_turn(cache)
    feed(llama, cache, 30)
    evictor.before_step(cache)
    assert cache.slot_table.token_index.max() == 39


def test_turn_evicts_once_before_the_prompt_down_to_the_target(llama: Any) -> None:
    cache = new_cache(llama)
    evictor = Evictor(build_policy("streaming_llm", {}), EvictionSchedule(Trigger.TURN, 50, 20))
    feed(llama, cache, 49)
    assert evictor.before_turn(cache) is None
    feed(llama, cache, 10)
    assert evictor.before_step(cache) is None
    eviction = evictor.before_turn(cache)
    assert eviction is not None
    assert (eviction.slots_before, eviction.slots_after, cache.size) == (59, 20, 20)


def test_prompt_protects_the_prompt_that_was_just_fed(llama: Any) -> None:
    cache = new_cache(llama)
    evictor = Evictor(
        build_policy("sliding_window_gist", {}), EvictionSchedule(Trigger.PROMPT, 50, 20)
    )
    feed(llama, cache, 45)
    feed(llama, cache, 12)
    evictor.after_prompt(cache, (45, 57))
    assert cache.slot_table.token_index[0, 0].tolist() == [*range(8), *range(45, 57)]


def test_a_prompt_longer_than_the_target_is_kept_whole(llama: Any) -> None:
    cache = new_cache(llama)
    evictor = Evictor(
        build_policy("random", {"keep_ratio": 0.5}), EvictionSchedule(Trigger.PROMPT, 50, 10)
    )
    feed(llama, cache, 60)
    evictor.after_prompt(cache, (30, 60))
    assert cache.slot_table.token_index[0, 0].tolist() == list(range(30, 60))


def test_step_holds_the_cache_at_its_target(llama: Any) -> None:
    cache = new_cache(llama)
    evictor = Evictor(
        build_policy("streaming_llm", {"sinks": 2}), EvictionSchedule(Trigger.STEP, 30, 20)
    )
    feed(llama, cache, 25)
    sizes = []
    for _ in range(30):
        evictor.before_step(cache)
        feed(llama, cache, 1)
        sizes.append(cache.size)
    assert max(sizes) == 30
    assert [e.slots_after for e in evictor.log] == [20, 20, 20]


def generate(llama: Any, cache: ManagedCache) -> torch.Tensor:
    prompt = torch.randint(3, 97, (1, 30), generator=torch.Generator().manual_seed(1))
    argument = {cache_argument(llama): cache}
    out: torch.Tensor = llama.generate(
        prompt, attention_mask=torch.ones_like(prompt), min_new_tokens=60, max_new_tokens=60,
        do_sample=False, **argument,
    )  # fmt: skip
    return out


OWN_SIZE: dict[str, dict[str, Any]] = {
    "random": {"keep_ratio": 0.5},
    "sliding_window": {"keep_ratio": 0.5},
}
OWN_SIZE |= {"evict_oldest": {"discard_ratio": 0.5}, "block": {"which": "last"}}
EVICTING = [kind for kind, policy in known_policies().items() if policy.evicts]
DEMANDING = [
    kind
    for kind in EVICTING
    if known_policies()[kind].needs_scores
    or known_policies()[kind].needs_extra_forward
    or build_policy(kind, OWN_SIZE.get(kind, {})).query_window
]


@pytest.mark.parametrize("kind", EVICTING)
def test_inside_generate_every_policy_evicts(kind: str, llama: Any) -> None:
    """As in README: the cache collects what the evictor's policy needs."""
    policy = build_policy(kind, OWN_SIZE.get(kind, {}))
    evictor = Evictor(policy, EvictionSchedule(Trigger.STEP, 40, 24))
    cache = new_cache(calibrated(llama, policy), "rerotated", evictor=evictor)
    assert generate(llama, cache).shape[1] == 90
    assert cache.size <= 40
    assert cache.get_seq_length() == 89
    assert [eviction.slots_after for eviction in evictor.log] == [24] * 4


@pytest.mark.parametrize("kind", DEMANDING)
def test_a_cache_without_what_a_policy_needs_is_refused_at_its_first_token(
    kind: str, llama: Any
) -> None:
    policy = build_policy(kind, {})
    evictor = Evictor(policy, EvictionSchedule(Trigger.STEP, 400, 24))
    cache = new_cache(llama, before_forward=evictor.before_step)
    with pytest.raises(UserError, match=rf"^policy {kind} ranks by .*evictor=evictor"):
        generate(llama, cache)
    assert cache.size == 0


def test_a_shorter_query_window_than_the_policys_is_refused(llama: Any) -> None:
    evictor = Evictor(build_policy("snapkv", {}), EvictionSchedule(Trigger.TURN, 40, 24))
    cache = new_cache(llama, query_window=8)
    with pytest.raises(UserError, match="the latest 32 queries, and this cache keeps 8"):
        evictor.before_turn(cache)


def test_scores_collected_for_other_reasons_do_not_change_a_policy(
    tmp_path: Path, llama: Any
) -> None:
    """One that looks at scores without saying so would act in some configurations only."""
    file = tmp_path / "mine.py"
    file.write_text(UNDECLARED)
    evictor = Evictor(
        build_policy("undeclared", {}, [file]), EvictionSchedule(Trigger.TURN, 40, 24)
    )
    for scored in (True, False):
        cache = new_cache(llama, collect_scores=scored)
        feed(llama, cache, 50)
        with pytest.raises(UserError, match=r"^policy undeclared .*needs_scores = True"):
            evictor.before_turn(cache)


UNDECLARED = """
from dataclasses import dataclass
from typing import ClassVar
from kvfidelity import Policy

@dataclass(frozen=True)
class Undeclared(Policy):
    kind: ClassVar[str] = "undeclared"
    def should_evict(self, view):
        return view.has_scores
    def priority(self, view):
        return view.attention("latest").mean((0, 1))
"""


def test_schedules_that_cannot_work_are_refused() -> None:
    with pytest.raises(UserError, match="needs a target"):
        Evictor(build_policy("snapkv", {}), EvictionSchedule(Trigger.TURN, 50))
    with pytest.raises(ValueError, match="later"):
        EvictionSchedule("later", 50)
    with pytest.raises(UserError, match="below the threshold"):
        EvictionSchedule(Trigger.TURN, 50, 50)
    with pytest.raises(UserError, match="target is 0 tokens; it must be at least 1"):
        EvictionSchedule(Trigger.TURN, 50, 0)
    with pytest.raises(UserError, match="threshold is -3 tokens"):
        EvictionSchedule(Trigger.TURN, -3)
    with pytest.raises(UserError, match="streaming_llm keeps 0 slots"):
        Evictor(
            build_policy("streaming_llm", {"sinks": 0, "recent": 0}),
            EvictionSchedule(Trigger.STEP, 50),
        )
    with pytest.raises(UserError, match="takes no target"):
        EvictionSchedule(Trigger.PAPER, 50, 20)
