"""What a scheduler is asked for, before a model is there and after."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from kvfidelity.pipeline.resources import (
    ResourceEstimate,
    computes_on_gpu,
    estimate_resources,
    estimate_scoring_resources,
)
from kvfidelity.pipeline.settings import load_settings
from tests.models.tiny import save_tiny

ROOT = Path(__file__).parents[2]
SETTINGS = load_settings(yaml.safe_load((ROOT / "config/config.yaml").read_text()))
MODEL, DATASET = next(iter(SETTINGS["models"])), next(iter(SETTINGS["datasets"]))
RUN = {"model": MODEL, "dataset": DATASET, "threshold": "none", "dialogue": "000"}
NOWHERE = Path("nowhere")


def of_run(folder: Path = NOWHERE, *, on_gpu: bool = True, **changes: Any) -> ResourceEstimate:
    return estimate_resources(SETTINGS, RUN | changes, folder, NOWHERE, on_gpu=on_gpu)


def of_planted(folder: Path = NOWHERE, *, on_gpu: bool = True, **changes: int) -> ResourceEstimate:
    settings = SETTINGS | {"reliability": SETTINGS["reliability"] | changes}
    return estimate_scoring_resources(settings, MODEL, folder, on_gpu=on_gpu)


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


@pytest.mark.parametrize("needed", [of_run, of_planted])
def test_a_cpu_takes_longer_and_no_less_memory(needed: Any) -> None:
    assert needed(on_gpu=False).minutes > 20 * needed(on_gpu=True).minutes
    assert needed(on_gpu=False).mem_mb == needed(on_gpu=True).mem_mb


@pytest.mark.parametrize("needed", [of_run, of_planted])
def test_a_model_that_is_not_there_counts_as_a_large_one(needed: Any, tmp_path: Path) -> None:
    small = needed(save_tiny(tmp_path / "model"), on_gpu=False)
    assert needed(on_gpu=False).minutes > 10 * small.minutes
    assert needed().mem_mb > 20_000 > small.mem_mb


def test_an_eviction_needs_memory_for_two_more_caches() -> None:
    threshold = next(iter(SETTINGS["thresholds"]))
    assert of_run(threshold=threshold).mem_mb > of_run().mem_mb


def test_more_planted_replies_take_longer() -> None:
    assert of_planted(on_gpu=False, replies=500).minutes > of_planted(on_gpu=False).minutes


def test_a_second_attempt_asks_for_twice() -> None:
    assert ResourceEstimate(5, 3000).scaled(2) == ResourceEstimate(10, 6000)
