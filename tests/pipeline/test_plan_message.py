"""What a dry run says that a run will take."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

from kvfidelity.pipeline.plan_message import plan_message
from kvfidelity.pipeline.settings import load_settings
from kvfidelity.records.grid import run_keys
from tests.models.tiny import save_tiny

ROOT = Path(__file__).parents[2]


CONFIG: dict[str, Any] = yaml.safe_load((ROOT / "config/config.yaml").read_text())
RUNS = len(run_keys(load_settings(CONFIG)))
NOWHERE = Path("nowhere")


def plan(settings: dict[str, Any], models: Path = NOWHERE, gpus: int = 0) -> str:
    return plan_message(settings, models, NOWHERE, gpus_visible=gpus)


def message(**changes: Any) -> str:
    config = dict(CONFIG)
    judge = {"kind": "openai", "model": "m", "rubric": "blind"} | changes.pop("judge", {})
    config |= {"judges": {"paid": judge}, "judging": ["paid"]} | changes
    return plan(load_settings(config)).split("\n")[1]


PRICES = {"m": {"input": 10.0, "output": 20.0}}


def dollars(text: str) -> float:
    [found] = re.findall(r"\$([\d,.]+) at", text)
    return float(found.replace(",", ""))


def test_verdicts_tokens_and_dollars_of_a_judge() -> None:
    # One own reply a run; 50 corrupted replies of 8 kinds, twice; 700 and 150 tokens.
    text = message(prices=PRICES)
    answers = RUNS + 800
    assert f"about {RUNS} answers and 800 to test it, about {answers * 850:,} tokens" in text
    each = (700 * 10 + 150 * 20) / 1e6
    assert dollars(text) == round(answers * each, 2)
    assert dollars(message(prices=PRICES, reliability={"replies": 0})) == round(RUNS * each, 2)


def test_batches_cost_half_and_the_history_costs_tokens() -> None:
    whole = dollars(message(prices=PRICES))
    assert abs(dollars(message(prices=PRICES, judge={"batch": True})) - whole / 2) < 0.01
    assert dollars(message(prices=PRICES, judge={"rubric": "grounded"})) > whole


def test_an_unknown_price_is_named() -> None:
    assert "`prices` has no m" in message()


def minutes(text: str, unit: str) -> int:
    [found] = re.findall(rf"(\d+) min on {unit}", text)
    return int(found)


def test_minutes_of_the_default_run_before_anything_is_fetched() -> None:
    """The generate jobs took 520 s on two cores; benchmarks of the run are in table `jobs`."""
    settings = load_settings(CONFIG)
    assert 520 / 60 / 2 < minutes(plan(settings), "CPU") < 2 * 520 / 60
    assert minutes(plan(settings, gpus=1), "GPU") < minutes(plan(settings), "CPU")


def test_what_runs_share_is_counted_once() -> None:
    settings = load_settings(CONFIG)
    alone = load_settings(CONFIG | {"session": CONFIG["session"] | {"share_prefix": False}})
    assert minutes(plan(alone), "CPU") > 1.5 * minutes(plan(settings), "CPU")


def test_a_model_that_is_there_counts_by_its_weights(tmp_path: Path) -> None:
    settings = load_settings(CONFIG)
    [name] = settings["models"]
    save_tiny(tmp_path / name)
    assert minutes(plan(settings, tmp_path), "CPU") == 1
