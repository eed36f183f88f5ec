"""What a dry run says that a run will take."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

from kvfidelity.judges.corruption_kinds import SINGLE
from kvfidelity.pipeline.plan_message import Place, plan_message
from kvfidelity.pipeline.planned_jobs import FOLLOWS, PlannedJob
from kvfidelity.pipeline.resources import estimate_training
from kvfidelity.pipeline.settings import load_settings, read_settings
from kvfidelity.records.grid import run_keys
from tests.models.tiny import save_tiny

ROOT = Path(__file__).parents[2]


CONFIG: dict[str, Any] = yaml.safe_load((ROOT / "config/config.yaml").read_text())
RUNS = len(run_keys(load_settings(CONFIG)))
NOWHERE = Path("nowhere")


def plan(settings: dict[str, Any], models: Path = NOWHERE, gpus: int = 0) -> str:
    planned = [PlannedJob("generate", run, "") for run in run_keys(settings)]
    planned += [PlannedJob("judge", run, "") for run in run_keys(settings)]
    return plan_message(settings, planned, Place(models, NOWHERE, gpus), "mine")


def message(**changes: Any) -> str:
    config = dict(CONFIG)
    judge = {"kind": "openai", "model": "m", "rubric": "blind"} | changes.pop("judge", {})
    config |= {"judges": {"paid": judge}, "judging": ["paid"]} | changes
    [line] = [line for line in plan(load_settings(config)).split("\n") if "judge paid" in line]
    return line


PRICES = {"m": {"input": 10.0, "output": 20.0}}


def dollars(text: str) -> float:
    [found] = re.findall(r"\$([\d,.]+) at", text)
    return float(found.replace(",", ""))


def test_verdicts_tokens_and_dollars_of_a_judge() -> None:
    # One own reply a run; 50 replies as good, damaged and injected ones, twice; 700 and 150 tokens.
    text = message(prices=PRICES)
    test = 50 * len(SINGLE) * 2
    answers = RUNS + test
    assert f"about {RUNS} answers and {test} to test it, about {answers * 850:,} tokens" in text
    each = (700 * 10 + 150 * 20) / 1e6
    assert dollars(text) == round(answers * each, 2)
    assert dollars(message(prices=PRICES, reliability={"replies": 0})) == round(RUNS * each, 2)


def test_batches_cost_half_and_the_history_costs_tokens() -> None:
    whole = dollars(message(prices=PRICES))
    assert abs(dollars(message(prices=PRICES, judge={"batch": True})) - whole / 2) < 0.01
    assert dollars(message(prices=PRICES, judge={"rubric": "grounded"})) > whole


def test_an_unknown_price_is_named() -> None:
    assert "`prices` has no m" in message()


def seconds(text: str, unit: str) -> float:
    [(number, size)] = re.findall(rf"(\d+) (s|min|h) on {unit}", text)
    return float(number) * {"s": 1, "min": 60, "h": 3600}[size]


def test_time_of_the_default_run_before_anything_is_fetched() -> None:
    """The generate jobs of the default run took about eight seconds each on two cores."""
    settings = load_settings(CONFIG)
    measured = 520 / 66 * RUNS
    assert measured / 2 < seconds(plan(settings), "CPU") < 2 * measured
    assert seconds(plan(settings, gpus=1), "GPU") < seconds(plan(settings), "CPU")


def test_time_of_the_large_grid_on_a_gpu_follows_the_batch() -> None:
    """On one H100 its jobs took 110 s with a batch of 16; run by run was not measured since."""
    settings = read_settings([ROOT / "config/config.yaml", ROOT / "benchmarks/grid_h100.yaml"])
    settings["session"]["batch_size"] = 16
    together = seconds(plan(settings, gpus=1), "GPU")
    assert 110 / 2 < together < 2 * 110
    settings["session"]["batch_size"] = 1
    assert seconds(plan(settings, gpus=1), "GPU") > 1.5 * together


def test_what_runs_share_is_counted_once() -> None:
    settings = load_settings(CONFIG)
    alone = load_settings(CONFIG | {"session": CONFIG["session"] | {"share_prefix": False}})
    assert seconds(plan(alone), "CPU") > 1.5 * seconds(plan(settings), "CPU")


def test_a_model_that_is_there_counts_by_its_weights(tmp_path: Path) -> None:
    settings = load_settings(CONFIG)
    [name] = settings["models"]
    save_tiny(tmp_path / name)
    assert seconds(plan(settings, tmp_path), "CPU") < 60


def test_a_size_that_nothing_tells_is_called_an_assumption() -> None:
    settings = load_settings(CONFIG)
    settings["models"] = {"mine": {**next(iter(settings["models"].values())), "member": "m.gguf"}}
    settings["models"]["mine"]["package"] = "weights"
    settings["grid"]["models"] = ["mine"]
    assert "mine (size unknown, taken as 8,000M weights, " in plan(settings)


def test_what_is_done_again_and_why_in_few_lines() -> None:
    settings = load_settings(CONFIG)
    runs = run_keys(settings)
    reason = "it was made with sinks 4, this configuration says 64"
    planned = [PlannedJob("generate", run, reason) for run in runs[:6]]
    planned += [PlannedJob("measure", run, FOLLOWS) for run in runs[:6]]
    planned += [PlannedJob(f"rule{number}", "", f"reason {number}") for number in range(5)]
    text = plan_message(settings, planned, Place(NOWHERE, NOWHERE, 0), "mine")
    assert f"6 generate, such as {runs[0]}: {reason}" in text.replace("as  ", "as ")
    assert "3 more for other reasons, 6 because what it is made from is made again" in text
    assert len(text.splitlines()) <= 10 and len(text) < 3000


FINETUNING = (ROOT / "config/config.yaml", ROOT / "config/experiments/finetune_gpu.yaml")


def test_trainings_are_estimated_apart_from_the_runs() -> None:
    settings = read_settings(FINETUNING)
    trained = [name for name, entry in settings["models"].items() if "adapter" in entry]
    planned = [PlannedJob("generate", run, "") for run in run_keys(settings)]
    without = plan_message(settings, planned, Place(NOWHERE, NOWHERE, 1), "mine")
    planned += [PlannedJob("finetune_model", name, "") for name in trained]
    text = plan_message(settings, planned, Place(NOWHERE, NOWHERE, 1), "mine")
    assert "to train" not in without
    train = rf"to train: +{len(trained)} models, very roughly (\d+) min on GPU"
    [[training], [generating]] = (
        re.findall(pattern, text)
        for pattern in (train, r"how long: +very roughly (\d+) min on GPU")
    )
    said = f"estimated the runs at {generating} minutes on one GPU and the trainings at {training}"
    assert said in " ".join((ROOT / "docs/finetuning.md").read_text(encoding="utf-8").split())


def test_a_training_takes_longer_with_its_steps_and_on_a_cpu() -> None:
    settings = read_settings(FINETUNING)

    def seconds(*, on_gpu: bool) -> float:
        return estimate_training(settings, "stale-0", NOWHERE, on_gpu=on_gpu).seconds

    before = seconds(on_gpu=True)
    assert before < seconds(on_gpu=False)
    settings["models"]["stale-0"]["adapter"]["steps"] *= 10
    assert 3 * before < seconds(on_gpu=True) < 10 * before
