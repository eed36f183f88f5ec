"""What a run says before it starts, and a dry run in place of a list of jobs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kvfidelity.pipeline.judging_cost import judging_estimate
from kvfidelity.pipeline.known_sizes import dialogue_tokens, model_size
from kvfidelity.pipeline.planned_jobs import FOLLOWS, PlannedJob
from kvfidelity.pipeline.resources import (
    GPU_START_S,
    LOAD_S,
    OVERHEAD_PER_RUN_S,
    TABLES_S,
    computes_on_gpu,
    estimate_run,
    estimate_training,
)
from kvfidelity.pipeline.rule_params import judge_kind
from kvfidelity.records.grid import MANIFEST, RunKey, cells, run_keys

GENERATE, FINETUNE = "generate", "finetune_model"
#: Reasons for which jobs are done again that are written out; the others are counted.
MOST_REASONS = 3
LABEL = 12


@dataclass(frozen=True)
class Place:
    """Where a plan looks for models and dialogues, and what computes.

    models: folder of the fetched models. dialogues: folder of the extracted dialogues. gpus: GPUs
    that this machine has. jobs: generate jobs that run at once, each on its own GPU. cores: of the
    processor, for jobs.
    """

    models: Path
    dialogues: Path
    gpus: int
    jobs: int = 1
    cores: int | None = None

    def has_gpu_for(self, model: Mapping[str, Any]) -> bool:
        """Whether a model of the configuration will be on a GPU."""
        return computes_on_gpu(model["device"], self.gpus)


def seconds_of_runs(
    settings: Mapping[str, Any], runs: Iterable[str], place: Place
) -> dict[str, float]:
    """What each run takes that finds its prefix computed, in seconds of its device."""
    known: dict[tuple[str, ...], float] = {}
    found = {}
    for run in runs:
        key = RunKey.from_path(run)
        # An estimate depends on nothing else of a run.
        alike = (key.model, key.dataset, key.threshold, key.dialogue)
        if alike not in known:
            known[alike] = estimate_run(
                settings,
                key._asdict(),
                place.models / key.model,
                place.dialogues / key.model / key.dataset / MANIFEST,
                on_gpu=place.has_gpu_for(settings["models"][key.model]),
                prefix_is_shared=True,
            ).seconds
        found[run] = known[alike]
    return found


def plan_message(
    settings: Mapping[str, Any], planned: Sequence[PlannedJob], place: Place, run: str
) -> str:
    """About ten lines for a person who is about to start a run.

    Args:
        settings: the checked configuration.
        planned: the jobs to do.
        run: its name, where its results go, and what configures it.
    """
    runs = [job.name for job in planned if job.rule == GENERATE]
    everything = run_keys(settings)
    grid = f"{len(cells(settings))} cells, {len(everything)} runs of one dialogue each"
    lines = [_line("which", run)]
    lines += [_line("what", f"{grid}: {len(runs)} to do, {_small_jobs(planned)}")]
    if runs:
        lines.append(_line("on what", _machine(settings, runs, place)))
        lines.append(_line("how long", _how_long(settings, runs, place)))
    trained = [job.name for job in planned if job.rule == FINETUNE]
    if trained:
        lines.append(_line("to train", _to_train(settings, trained, place)))
    if any("judge" in job.rule or job.rule == "compare_replies" for job in planned):
        lines += [_line("what it costs", text) for text in _costs(settings, everything, place)]
    lines += [_line("again", text) for text in _again(planned)]
    return "\n".join(lines)


def duration(seconds: float) -> str:
    """Seconds, minutes or hours, whole."""
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.0f} h"


def _line(label: str, text: str) -> str:
    return f"{label + ':':<{LABEL + 3}}{text}"


def _small_jobs(planned: Sequence[PlannedJob]) -> str:
    others = Counter(job.rule for job in planned if job.rule != GENERATE)
    several = [f"{number} {rule}" for rule, number in others.most_common() if number > 1]
    single = sum(number == 1 for number in others.values())
    if single:
        several.append(f"{single} more" if several else str(single))
    return f"and {sum(others.values())} smaller jobs ({', '.join(several) or 'none'})"


def _machine(settings: Mapping[str, Any], runs: Sequence[str], place: Place) -> str:
    keys = [RunKey.from_path(run) for run in runs]
    models = []
    for name in sorted({key.model for key in keys}):
        entry = settings["models"][name]
        parameters, _, known = model_size(entry, place.models / name)
        size = "" if known else "size unknown, taken as "
        size += f"{parameters / 1e6:,.0f}M weights"
        unit = f"{place.cores} CPU core{'s' * (place.cores != 1)}" if place.cores else "the CPU"
        if place.has_gpu_for(entry):
            session = settings["session"]
            batch = session["batch_size"] * session["workers_per_gpu"]
            unit = "a GPU" if place.jobs == 1 else f"{place.jobs} GPUs"
            unit += f", {batch} runs at once" if batch > 1 else ", runs one by one"
        models.append(f"{name} ({size}, {entry['dtype']}) on {unit}")
    sets = []
    for name in sorted({key.dataset for key in keys}):
        number = len({key.dialogue for key in keys if key.dataset == name})
        sets.append(f"{name} ({number} dialogue{'s' * (number != 1)})")
    return f"{'; '.join(models)}; {', '.join(sets)}"


def _how_long(settings: Mapping[str, Any], runs: Sequence[str], place: Place) -> str:
    seconds = {"GPU": 0.0, "CPU": 0.0}
    for run, of_run in seconds_of_runs(settings, runs, place).items():
        entry = settings["models"][RunKey.from_path(run).model]
        seconds["GPU" if place.has_gpu_for(entry) else "CPU"] += of_run
    seconds["GPU"] /= place.jobs
    start = {"GPU": GPU_START_S, "CPU": LOAD_S}
    times = [
        f"{duration(total + start[unit])} on {unit}" for unit, total in seconds.items() if total
    ]
    rest = TABLES_S + OVERHEAD_PER_RUN_S * len(runs)
    return f"very roughly {' and '.join(times)} to generate, {duration(rest)} for the rest"


def _to_train(settings: Mapping[str, Any], models: Sequence[str], place: Place) -> str:
    """Trainings before the runs; on GPUs as many at once as there are jobs."""
    seconds = {"GPU": 0.0, "CPU": 0.0}
    for name in models:
        gpu = place.has_gpu_for(settings["models"][name])
        work = estimate_training(settings, name, place.models / name, on_gpu=gpu)
        seconds["GPU" if gpu else "CPU"] += work.seconds / (place.jobs if gpu else 1)
    times = [f"{duration(total)} on {unit}" for unit, total in seconds.items() if total]
    number = f"{len(models)} model{'s' * (len(models) != 1)}"
    return f"{number}, very roughly {' and '.join(times)} on top of that"


def _costs(settings: Mapping[str, Any], runs: Sequence[str], place: Place) -> list[str]:
    paid = [name for name in settings["judging"] if judge_kind(settings, name).needs_network]
    if not paid:
        return ["nothing: no judge asks a paid model"]
    keys = [RunKey.from_path(run) for run in runs]
    lengths = [
        dialogue_tokens(
            settings["datasets"][key.dataset],
            place.dialogues / key.model / key.dataset / MANIFEST,
            int(key.dialogue),
        )
        for key in keys
    ]
    return [judging_estimate(settings, name, lengths) for name in paid]


def _again(planned: Sequence[PlannedJob]) -> list[str]:
    reasons = Counter((job.rule, job.again) for job in planned if job.again not in ("", FOLLOWS))
    example = {(job.rule, job.again): job.name for job in reversed(planned)}
    lines = []
    for (rule, why), number in reasons.most_common(MOST_REASONS):
        name = f" {example[rule, why]}" if example[rule, why] else ""
        such = f"{number} {rule}, such as{name}" if number > 1 else f"{rule}{name}"
        lines.append(f"{such}: {why}")
    left_out = sum(number for _, number in reasons.most_common()[MOST_REASONS:])
    follow = sum(job.again == FOLLOWS for job in planned)
    more = [f"{left_out} more for other reasons"] if left_out else []
    more += [f"{follow} because {FOLLOWS}"] if follow else []
    return [*lines, *([", ".join(more)] if more else [])]
