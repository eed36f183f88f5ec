"""What measuring an eviction takes is in no column of seconds."""

from __future__ import annotations

import time
from typing import Any

import pytest

from kvfidelity.cache.evictor import Evictor
from kvfidelity.decoding.engine import Engine
from kvfidelity.metrics.disruption import DisruptionMeter
from tests.generation.test_run import run

COLUMNS = ("eviction_s", "scoring_s", "ttft_s", "tpot_s")


@pytest.mark.parametrize("trigger", ["turn", "prompt", "step"])
def test_seconds_are_those_of_a_run_that_measures_nothing(
    engine: Engine, trigger: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a clock that measuring advances by 10 seconds, and a look at it by next to nothing."""
    now = 1000.0
    memory, disruption = Evictor._memory_of_ranking, DisruptionMeter.__call__

    def look() -> float:
        nonlocal now
        now += 2**-20
        return now

    def slow_memory(*arguments: Any) -> int:
        nonlocal now
        now += 10
        return memory(*arguments)

    def slow_disruption(*arguments: Any) -> Any:
        nonlocal now
        now += 10
        return disruption(*arguments)

    monkeypatch.setattr(time, "perf_counter", look)
    monkeypatch.setattr(Evictor, "_memory_of_ranking", slow_memory)
    monkeypatch.setattr(DisruptionMeter, "__call__", slow_disruption)
    records = run(
        engine,
        trigger=trigger,
        at="120tok",
        target="60tok",
        replies="own",
        max_new_tokens=70 if trigger == "step" else 5,
        disruption_window=8,
        parameters={"healing": "merge"},
    )
    turns, evictions = records.turns, records.evictions
    assert evictions.height >= 2 and now >= 1000 + 10 * (1 + evictions.height)
    for column in COLUMNS:
        assert 0 <= turns[column].min() <= turns[column].max() < 1
    assert turns["ttft_s"].count() == turns.height and turns["tpot_s"].count() > 1
    assert 0 < evictions["healing_s"].min() <= evictions["healing_s"].max() < 1
