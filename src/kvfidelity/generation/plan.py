"""What a run does, decided before the first token is fed: turns, segments, policy, questions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from kvfidelity.cache.evictor import EvictionSchedule, Evictor, Trigger
from kvfidelity.cache.healing import Healing, build_healing
from kvfidelity.cache.healing.registry import without_healing
from kvfidelity.cache.policies import Policy, build_policy
from kvfidelity.cache.positions import PositionMode, check_shift
from kvfidelity.cache.triton import kernels_run_on
from kvfidelity.decoding.engine import Engine
from kvfidelity.decoding.sampling import Sampling
from kvfidelity.dialogues.pool import Dialogue, Turn
from kvfidelity.dialogues.segments import Segment
from kvfidelity.errors import UserError
from kvfidelity.generation.calibration import ensure_calibrated
from kvfidelity.generation.recall import Questions, RecallSetting, prepare_questions
from kvfidelity.generation.spec import RunSpec
from kvfidelity.generation.turns import TurnSetting
from kvfidelity.metrics.disruption import DisruptionMeter
from kvfidelity.sizes import size_in_tokens

#: Recent queries that the baseline keeps at each checkpoint: as many as any built-in policy needs.
MAX_QUERY_WINDOW = 128


@dataclass(frozen=True)
class RunPlan:
    """One cell on one dialogue.

    turns, segments: the turns to run, as text and as token ids. evictor: of the cell's policy, not
    yet used. query_window: number of recent queries that the policy, its healing and the disruption
    need.
    scored: whether attention scores are collected.
    """

    spec: RunSpec
    dialogue: Dialogue
    turns: Sequence[Turn]
    segments: Sequence[Segment]
    evictor: Evictor
    query_window: int
    scored: bool
    recall: RecallSetting
    questions: Questions

    def turn_setting(self, turn: int) -> TurnSetting:
        """How the reply of a turn is produced; some turns generate no reply of the model's own."""
        spec = self.spec
        generates = (
            spec.replies == "own"
            or spec.own_reply_turns is None
            or turn >= len(self.segments) - spec.own_reply_turns
        )
        return TurnSetting(
            spec.replies,
            spec.max_new_tokens if generates else 0,
            Sampling(spec.temperature, spec.top_p),
            spec.seed,
            spec.feed_end_of_turn,
        )

    def prompt_after_gap(self, engine: Engine, turn: int) -> tuple[int, ...]:
        """A turn's prompt after an eviction, which its healing may add to."""
        said = self.turns[turn]
        message = self.evictor.healing.message(said.user)
        if message == said.user:
            return self.segments[turn].prompt_ids
        turns = [*self.turns[:turn], Turn(message, said.assistant)]
        limit = self.spec.max_prompt_tokens
        segments = engine.segmenter.segments(turns, max_prompt_tokens=limit)
        prompt: tuple[int, ...] = segments[turn].prompt_ids
        return prompt


def policy_of(spec: RunSpec) -> Policy:
    """The policy that a specification names.

    Raises:
        UserError: an unknown kind or parameter, or a file that defines no policy.
    """
    parameters, _ = without_healing(spec.parameters)
    return build_policy(spec.kind, parameters, [Path(file) for file in spec.policy_files])


def healing_of(spec: RunSpec) -> Healing:
    """The healing that a specification names; one that does nothing by default."""
    return build_healing(without_healing(spec.parameters)[1])


def plan_run(engine: Engine, dialogue: Dialogue, spec: RunSpec) -> RunPlan:
    """Check a specification and a dialogue, and prepare what the run needs.

    Raises:
        UserError: a specification or dialogue that cannot be run; the message names it.
    """
    if not dialogue.turns:
        raise UserError(f"dialogue {dialogue.dialogue_id} has no turn; drop it from the dataset")
    recall = RecallSetting.of(spec.recall)
    if recall.needles_per_depth and spec.max_first_prompt_tokens is not None:
        raise UserError(
            "session.recall.needles_per_depth and session.max_first_prompt_tokens exclude each "
            "other: a needle could be cut away; set one of them to 0 or null"
        )
    questions = prepare_questions(
        dialogue,
        recall,
        spec.seed,
        max_turns=spec.max_turns,
        max_prompt_tokens=spec.max_prompt_tokens,
    )
    turns = questions.dialogue.turns[: spec.max_turns]
    policy, healing = policy_of(spec), healing_of(spec)
    healing.check(
        spec.trigger,
        spec.positions,
        on_gpu=kernels_run_on(engine.device),
        policy=policy,
    )
    healing = healing.prepared(lambda text: tuple(engine.segmenter.whole_turn(text)))
    if spec.disruption_window > MAX_QUERY_WINDOW:
        raise UserError(
            f"session.disruption_window is {spec.disruption_window}; at most {MAX_QUERY_WINDOW} "
            "queries are kept"
        )
    if policy.query_window > MAX_QUERY_WINDOW:
        raise UserError(
            f"policy {spec.policy}: query_window is {policy.query_window}; at most "
            f"{MAX_QUERY_WINDOW} queries are kept"
        )
    ensure_calibrated(engine, policy)
    threshold, target = (
        None
        if size is None
        else size_in_tokens(size, token_bytes=engine.token_bytes, window=engine.window)
        for size in (spec.at, spec.target)
    )
    schedule = EvictionSchedule(Trigger(spec.trigger), threshold, target)
    check_shift(PositionMode(spec.positions), threshold if policy.evicts else None)
    return RunPlan(
        spec=spec,
        dialogue=dialogue,
        turns=turns,
        segments=engine.segmenter.segments(
            turns,
            max_prompt_tokens=spec.max_prompt_tokens,
            max_first_prompt_tokens=spec.max_first_prompt_tokens,
        ),
        evictor=Evictor(
            policy,
            schedule,
            spec.seed,
            healing,
            DisruptionMeter(spec.disruption_window) if spec.disruption_window else None,
            # It ranks once more: on one dialogue of each cell.
            measures_memory=dialogue.ordinal == "000",
        ),
        query_window=max(policy.query_window, healing.query_window, spec.disruption_window),
        scored=policy.needs_scores or spec.score_every_run,
        recall=recall,
        questions=questions,
    )
