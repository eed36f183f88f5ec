"""What a dry run says before its list of jobs: runs, hours, dollars."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kvfidelity.pipeline.judging_cost import judging_estimate
from kvfidelity.pipeline.known_sizes import dialogue_tokens
from kvfidelity.pipeline.resources import computes_on_gpu, estimate_run
from kvfidelity.pipeline.rule_params import judge_kind
from kvfidelity.records.grid import MANIFEST, RunKey, cells, run_keys


def plan_message(
    settings: Mapping[str, Any], models: Path, dialogues: Path, *, gpus_visible: int
) -> str:
    """A few lines for a person who is about to start a run.

    Args:
        settings: the checked configuration.
        models: folder of the fetched models. dialogues: folder of the extracted dialogues.
        gpus_visible: GPUs of this machine; decides for models with `device: auto`.
    """
    runs = [RunKey.from_path(path) for path in run_keys(settings)]
    seconds = {"GPU": 0.0, "CPU": 0.0}
    lengths = []
    for run in runs:
        manifest = dialogues / run.model / run.dataset / MANIFEST
        on_gpu = computes_on_gpu(settings["models"][run.model]["device"], gpus_visible)
        estimate = estimate_run(
            settings,
            run._asdict(),
            models / run.model,
            manifest,
            on_gpu=on_gpu,
            prefix_is_shared=True,
        )
        seconds["GPU" if on_gpu else "CPU"] += estimate.seconds
        lengths.append(
            dialogue_tokens(settings["datasets"][run.dataset], manifest, int(run.dialogue))
        )
    times = [f"{_duration(total)} on {unit}" for unit, total in seconds.items() if total]
    lines = [
        f"{len(cells(settings))} cells, {len(runs)} runs of one dialogue each: very roughly "
        f"{' and '.join(times) or 'no time'} to generate"
    ]
    for name in settings["judging"]:
        if judge_kind(settings, name).needs_network:
            lines.append(judging_estimate(settings, name, lengths))
    return "\n".join(lines)


def _duration(seconds: float) -> str:
    minutes = max(1, round(seconds / 60))
    return f"{minutes} min" if minutes < 120 else f"{minutes / 60:.0f} h"
