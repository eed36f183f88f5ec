"""Baselines for tests, and their folder."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest
import torch
from polars.testing import assert_frame_equal

from kvfidelity.decoding.engine import Engine
from kvfidelity.generation.baseline import compute_baseline
from kvfidelity.generation.baseline_run import BaselineRun
from kvfidelity.generation.plan import plan_run
from kvfidelity.generation.run import Records, run_dialogue
from kvfidelity.generation.spec import RunSpec
from kvfidelity.prefix.cache import PrefixCache
from kvfidelity.prefix.disk_cache import DiskPrefixCache
from kvfidelity.records.artifacts import TIMINGS
from tests.generation.test_recall import dialogue_with_evidence
from tests.generation.test_run import BASE, talk

MAX_BYTES = 1 << 30
COMPUTE_BASELINE = "kvfidelity.generation.run.compute_baseline"


def disk_cache(
    engine: Engine, folder: Path, max_bytes: int = MAX_BYTES, **environment: str
) -> DiskPrefixCache:
    return DiskPrefixCache(folder, max_bytes, engine, environment)


def baseline_run(engine: Engine, spec: RunSpec = BASE, turns: int = 5) -> BaselineRun:
    plan = plan_run(engine, talk(turns), spec)
    return compute_baseline(engine, plan, lambda event: None)


def run_in_new_process(
    engine: Engine, spec: RunSpec, folder: Path, *, computes: bool = True
) -> Records:
    """A run with an empty memory cache; `computes`: whether it may compute the baseline."""
    with pytest.MonkeyPatch.context() as patch:
        if not computes:
            patch.setattr(COMPUTE_BASELINE, lambda *args: pytest.fail("the baseline is computed"))
        prefix_cache = PrefixCache(MAX_BYTES, disk_cache(engine, folder), store_all=True)
        return run_dialogue(engine, dialogue_with_evidence(), spec, prefix_cache)


def assert_same_records(one: Records, other: Records) -> None:
    for mine, theirs in zip(one, other, strict=True):
        drop = TIMINGS & set(mine.columns)
        assert_frame_equal(mine.drop(drop), theirs.drop(drop), check_exact=True)


def the_file(folder: Path) -> Path:
    [file] = folder.iterdir()
    return file


def size_on_disk(engine: Engine, run: BaselineRun) -> int:
    with tempfile.TemporaryDirectory() as folder:
        disk_cache(engine, Path(folder)).store("key", run)
        return the_file(Path(folder)).stat().st_size


def same_outcomes(one: BaselineRun, other: BaselineRun) -> bool:
    pairs = zip(one.outcomes, other.outcomes, strict=True)
    return all(torch.equal(a.predicted, b.predicted) for a, b in pairs)
