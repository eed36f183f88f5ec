"""When a policy evicts, and down to which size.

`Evictor._evict_if_due` compares the cache with the threshold. `steps_without_eviction` and
`may_evict_in_turn` predict the result.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum

import torch
from torch import Tensor

from kvfidelity.cache.eviction_log import Disruption, Eviction
from kvfidelity.cache.healing import Healing, build_healing
from kvfidelity.cache.healing.base import FedMessages
from kvfidelity.cache.live_bytes import LiveBytes
from kvfidelity.cache.managed import ManagedCache
from kvfidelity.cache.policies.base import Policy
from kvfidelity.cache.ragged import RaggedKeepSet
from kvfidelity.cache.repetition import Repetition
from kvfidelity.cache.scores import NotCollectedError
from kvfidelity.cache.slots import as_grid, check_keep_set
from kvfidelity.cache.triton import kernels_run_on
from kvfidelity.cache.view import CacheView, Span, view_again, view_of
from kvfidelity.errors import UserError


class Trigger(StrEnum):
    """When an eviction is considered. It happens only if the cache holds at least the threshold.

    PAPER: before a turn and before every decode step, to the policy's own size: no target, and
        nothing is protected. At a ratio of 99% this repeats step by step until the cache is under
        the threshold (arXiv 2511.04686). Before a turn there are no scores: attention_top waits,
        others draw at random, as in the paper's code.
    TURN: before a turn, down to the target. The turn's prompt is fed after it, so none of it is
        evicted.
    PROMPT: after a turn's prompt has been fed, before its first decode step, down to the target;
        the prompt is protected.
    STEP: before every decode step, down to the target.
    """

    PAPER = "paper"
    TURN = "turn"
    PROMPT = "prompt"
    STEP = "step"


@dataclass(frozen=True)
class EvictionSchedule:
    """When to evict, and down to how many slots.

    trigger: a Trigger or its value, such as "step".
    threshold: slots from which on the policy evicts; None: never.
    target: slots that are left; None: the policy's own size.

    Raises:
        ValueError: an unknown trigger.
        UserError: a size under one slot, a target with trigger `paper`, or one that is not below
            the threshold.
    """

    trigger: Trigger | str
    threshold: int | None
    target: int | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "trigger", Trigger(self.trigger))
        if self.trigger is Trigger.PAPER and self.target is not None:
            raise UserError("trigger paper takes no target: its policies keep their own size")
        for name, size in (("threshold", self.threshold), ("target", self.target)):
            if size is not None and size < 1:
                raise UserError(f"{name} is {size} tokens; it must be at least 1")
        if self.threshold is not None and self.target is not None and self.target >= self.threshold:
            raise UserError(
                f"target ({self.target} tokens) must be below the threshold "
                f"({self.threshold} tokens), or every forward evicts"
            )


class Evictor:
    """Evicts by one policy and one schedule, and keeps a log.

    Args:
        policy, schedule: what to keep, and when to evict.
        seed: the run's seed; together with the number of the eviction it seeds random policies.
        healing: what is done about the gap; nothing by default.
        measure: measures an eviction before it happens, for the log: see `metrics.disruption`.
        measures_memory: whether the first eviction ranks twice: once to measure the memory that it
            takes, and once to time and to use it.

    `messages` is needed by a healing that feeds tokens, and by a policy that looks at messages.

    Raises:
        UserError: the schedule sets no target and the policy needs one, or it keeps no slot; the
            healing cannot follow the policy.
    """

    def __init__(
        self,
        policy: Policy,
        schedule: EvictionSchedule,
        seed: int = 0,
        healing: Healing | None = None,
        measure: Callable[[ManagedCache, Tensor | RaggedKeepSet], Disruption | None] | None = None,
        *,
        measures_memory: bool = False,
    ) -> None:
        if policy.evicts and schedule.target is None:
            _check_size(policy, policy.default_size(1))
        self.policy, self.schedule, self.seed, self.measure = policy, schedule, seed, measure
        self.measures_memory = measures_memory
        self.healing = healing if healing is not None else build_healing("none")
        self.healing.check_policy(policy)
        self.messages: FedMessages | None = None
        self.log: list[Eviction] = []
        #: Seconds that measuring evictions took so far; no time of a run contains them.
        self.measuring_s = 0.0
        self.turn = 0
        self.step = 0

    def copy(self, turn: int) -> Evictor:
        """An evictor of the same policy, schedule and step, for turn `turn`, with an empty log."""
        other = Evictor(self.policy, self.schedule, self.seed, self.healing)
        other.turn, other.step = turn, self.step
        if self.messages is not None:
            other.messages = self.messages.copy()
        return other

    def before_turn(self, cache: ManagedCache) -> Eviction | None:
        """Evict if due, before a turn's prompt is fed."""
        if self.schedule.trigger not in (Trigger.PAPER, Trigger.TURN):
            return None
        # The paper's code drops the scores of the previous turn when a turn starts.
        return self._evict_if_due(cache, scores=self.schedule.trigger is not Trigger.PAPER)

    def after_prompt(self, cache: ManagedCache, prompt: Span) -> Eviction | None:
        """Evict if due, once the prompt fills the slots `prompt`, a half-open span."""
        if self.schedule.trigger is not Trigger.PROMPT:
            return None
        return self._evict_if_due(cache, (prompt,))

    def before_step(self, cache: ManagedCache) -> Eviction | None:
        """Evict if due, before a decode step."""
        if self.schedule.trigger not in (Trigger.PAPER, Trigger.STEP):
            return None
        return self._evict_if_due(cache)

    def steps_without_eviction(self, cache: ManagedCache) -> int | None:
        """How many decoded tokens can be fed before the next eviction is due; None: any number.

        A teacher-forced reply is fed in chunks of this size. Its evictions then equal those of
        feeding it token by token.
        """
        trigger, threshold = self.schedule.trigger, self.schedule.threshold
        if trigger not in (Trigger.PAPER, Trigger.STEP) or threshold is None:
            return None
        return max(1, threshold - cache.size) if self.policy.evicts else None

    @property
    def evicts_between_turns_only(self) -> bool:
        """Whether it never evicts inside a turn."""
        return not self.policy.evicts or self.schedule.trigger is Trigger.TURN

    def may_evict_in_turn(self, start: int, peak: int) -> bool:
        """Whether a turn that starts with `start` slots and grows to `peak` can evict."""
        if not self.policy.evicts or self.schedule.threshold is None:
            return False
        top = start if self.schedule.trigger is Trigger.TURN else peak
        return top >= self.schedule.threshold

    def _evict_if_due(
        self, cache: ManagedCache, protected: tuple[Span, ...] = (), scores: bool = True
    ) -> Eviction | None:
        threshold, target = self.schedule.threshold, self.schedule.target
        if threshold is None or not self.policy.evicts:
            return None
        self._check_needs(cache)
        if cache.size < threshold:
            return None
        size = target
        if size is None:
            size = _check_size(self.policy, self.policy.default_size(cache.size))

        view = self._view(cache, min(size, cache.size), protected, scores)

        def keep(budget: int) -> Tensor | RaggedKeepSet:
            # A view's numbers to draw and its extra forward are used up by one ranking.
            if view.heads or view.repetition is not None:
                again = self._view(cache, budget, protected, scores)
            else:
                again = view_again(view, cache, budget, self.seed)
            kept = self.policy.keep(again)
            _check_keep_set(self.policy, kept, again)
            return kept

        if view.budget >= cache.size or not self._can_rank(view):
            return None
        # Each reading of the clock waits for the device: none where nothing happened in between.
        ranking_bytes, measuring_start = None, _now(cache)
        ranking_start = measuring_start
        if self.measures_memory and not self.log:
            ranking_bytes = self._memory_of_ranking(view)
            ranking_start = _now(cache)
        choice = self.healing.choose(keep, view.budget, cache.size)
        kept = choice.kept
        ranking_end = _now(cache)
        before, seen, ghosts = cache.size, cache.slot_table.tokens_seen, cache.ghosts_per_head
        evicted_share = cache.attention_share_outside(choice.survivors)
        disruption = None if self.measure is None else self.measure(cache, kept)
        reading_start = _now(cache)
        self.measuring_s += ranking_start - measuring_start + reading_start - ranking_end
        acts = type(self.healing).acts
        with torch.inference_mode():
            found = self.healing.read(cache, choice)
        move_start = _now(cache) if acts else reading_start
        cache.keep(kept)
        move_end = _now(cache)
        with torch.inference_mode():
            healed = self.healing.write(cache, found, self.messages)
        healing_s = _now(cache) - move_end + move_start - reading_start if acts else 0.0
        eviction = Eviction(
            turn=self.turn,
            step=self.step,
            tokens_seen=seen,
            slots_before=before,
            kept=kept.to("cpu") if isinstance(kept, RaggedKeepSet) else as_grid(kept).cpu(),
            scoring_s=ranking_end - ranking_start,
            eviction_s=move_end - move_start,
            attention_share=evicted_share,
            healing=self.healing.kind,
            healed=healed,
            ghosts_before=ghosts,
            ghosts_after=cache.ghosts_per_head,
            healing_s=healing_s,
            disruption=disruption,
            ranking_bytes=ranking_bytes,
            held_bytes=self._held_bytes(cache),
        )
        self.log.append(eviction)
        return eviction

    def _view(
        self, cache: ManagedCache, budget: int, protected: tuple[Span, ...], scores: bool
    ) -> CacheView:
        """What the policy sees of a cache now."""
        view = view_of(cache, budget, self.seed, protected, scores=scores)
        if self.messages is not None:
            view = view.with_messages(self.messages.starts)
        return self.policy.declared(view.with_model(cache.rotary.calibration, Repetition(cache)))

    def _memory_of_ranking(self, view: CacheView) -> int:
        for _ in view.layers:  # so that what they show does not count
            pass
        with LiveBytes() as memory:
            self.policy.keep(view)
        peak: int = memory.peak
        return peak

    def _held_bytes(self, cache: ManagedCache) -> int:
        """Bytes that are kept for the policy, of what the cache collects and the model knows."""
        held, recent, known = 0, cache.recent_queries, cache.rotary.calibration
        if self.policy.needs_scores and cache.scores is not None:
            held += cache.scores.nbytes
        if self.policy.query_window and recent is not None:
            held += recent.nbytes * self.policy.query_window // recent.window
        if self.policy.needs_calibration and known is not None:
            held += known.filters.nbytes + known.retrieval.nbytes
        return held

    def _check_needs(self, cache: ManagedCache) -> None:
        """Refuse a cache that does not collect what the policy ranks by, before it is due."""
        policy, missing = self.policy, ""
        self.healing.check(
            str(self.schedule.trigger),
            cache.slot_table.mode,
            on_gpu=kernels_run_on(cache.rotary.device),
            policy=policy,
        )
        if self.healing.query_window > cache.query_window:
            raise UserError(
                f"healing {self.healing.kind} reads the latest {self.healing.query_window} "
                f"queries, and this cache keeps {cache.query_window}: make it with "
                "new_cache(model, evictor=evictor)"
            )
        if self.healing.needs_text and cache.transcript is None:
            raise UserError(
                f"healing {self.healing.kind} reads the text again, and this cache does not keep "
                "its text: make it with new_cache(model, evictor=evictor)"
            )
        if policy.needs_output_projection and not cache.rotary.has_output_projections:
            raise UserError(
                f"policy {policy.kind} ranks by the output projections `o_proj`, and the attention "
                "of this architecture has none; use another policy"
            )
        if policy.needs_calibration and cache.rotary.calibration is None:
            raise UserError(
                f"policy {policy.kind} ranks by a calibration, and this model has none: call "
                "kvfidelity.cache.calibration.calibrate(model, ids) with the ids of a text"
            )
        if policy.needs_extra_forward and cache.transcript is None:
            missing = "a text that is fed again, and this cache does not keep its text"
        elif policy.needs_scores and cache.scores is None:
            missing = "attention scores, and this cache collects none"
        elif policy.query_window > cache.query_window:
            missing = f"the latest {policy.query_window} queries, and this cache keeps " + (
                str(cache.query_window) if cache.query_window else "none"
            )
        if missing:
            raise UserError(
                f"policy {policy.kind} ranks by {missing}: make it with "
                "new_cache(model, evictor=evictor)"
            )

    def _can_rank(self, view: CacheView) -> bool:
        try:
            return self.policy.should_evict(view)
        except NotCollectedError as error:
            raise UserError(f"policy {self.policy.kind} cannot rank: {error}") from None


def _check_size(policy: Policy, size: int | None) -> int:
    """The policy's own size; a policy without one, or with less than one slot, is refused."""
    if size is None:
        raise UserError(f"policy {policy.kind} needs a target: set one for the threshold")
    if size < 1:
        raise UserError(f"policy {policy.kind} keeps {size} slots: let it keep at least 1")
    return size


def _check_keep_set(policy: Policy, kept: object, view: CacheView) -> None:
    """Refuse a keep set of a policy with a `keep` of its own that no cache could follow."""
    if type(policy).keep is Policy.keep:
        return
    layers, groups = view.grid
    size = min(view.budget, view.slots)
    if isinstance(kept, RaggedKeepSet):
        if not policy.ragged:  # decode steps on a GPU are built for one kind of cache
            raise UserError(
                f"policy {policy.kind}: its keep set is ragged; it must declare `ragged = True`"
            )
        try:
            kept.check(view.counts)
        except ValueError as error:
            raise UserError(f"policy {policy.kind}: {error}") from None
        if kept.per_head != size:
            raise UserError(
                f"policy {policy.kind}: its keep set has {kept.per_head} slots per kv head, "
                f"not {size}"
            )
        return
    allowed = ((size,), (layers, size), (layers, groups, size))
    if (
        not isinstance(kept, Tensor)
        or kept.dtype is not torch.int64
        or tuple(kept.shape) not in allowed
    ):
        found = (
            f"{kept.dtype} {list(kept.shape)}" if isinstance(kept, Tensor) else type(kept).__name__
        )
        shapes = " or ".join(str(list(shape)) for shape in allowed)
        raise UserError(f"policy {policy.kind}: its keep set is {found}, not int64 {shapes}")
    try:
        check_keep_set(as_grid(kept), view.slots)
    except ValueError as error:
        raise UserError(f"policy {policy.kind}: {error}") from None


def _now(cache: ManagedCache) -> float:
    if cache.layers[0].device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()
