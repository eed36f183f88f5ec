"""The text of a run so far, for policies that feed it again."""

from __future__ import annotations

from kvfidelity.cache.transcript import Transcript
from kvfidelity.decoding.engine import Engine
from kvfidelity.dialogues.pool import Turn
from kvfidelity.generation.baseline_run import BaselineRun
from kvfidelity.generation.plan import RunPlan

#: What a user says to have the text repeated, as in KVzip (arXiv 2505.23416).
REQUEST = "Repeat the previous context exactly."


def known_text(
    engine: Engine, plan: RunPlan, baseline: BaselineRun, turns: int
) -> Transcript | None:
    """What a run's cache holds after its first `turns` turns, which are the baseline's; None if
    neither its policy nor its healing needs it.

    Further tokens are noted as they are fed.
    """
    evictor = plan.evictor
    if not (evictor.policy.needs_extra_forward or evictor.healing.needs_text):
        return None
    ids: list[int] = []
    for segment, outcome in zip(plan.segments[:turns], baseline.outcomes, strict=False):
        ids += [*segment.prompt_ids, *outcome.fed]
    request = engine.segmenter.segments([Turn("Hello.", "Hello."), Turn(REQUEST, "Yes.")])[1]
    return Transcript(ids, request.prompt_ids)
