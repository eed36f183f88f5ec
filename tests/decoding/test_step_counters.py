"""What graph steps know of their sequences between two steps; without a GPU, so without a graph."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch

from kvfidelity.cache.triton.step_table import StepTable
from kvfidelity.decoding.steps_cudagraph import GraphSteps

CPU = torch.device("cpu")


class Table(StepTable):
    """A step table that admits sequences without a cache."""

    def admit(self, index: int, cache: Any, *, alive: bool, max_new_tokens: int) -> None:
        self.alive[index] = int(alive)


def graph_steps(batch_size: int) -> GraphSteps:
    """Steps without an engine: each feeds a token to every living sequence."""
    steps = object.__new__(GraphSteps)
    table, fed = Table(2, batch_size, 4, CPU), torch.zeros(batch_size, dtype=torch.int64)
    steps._table, steps._fed, steps._sequences, steps._launched = table, fed, {}, 0
    steps._token = torch.zeros(batch_size, 1, dtype=torch.int64)
    steps._sampling = torch.zeros(2, batch_size, dtype=torch.float64)
    steps._uniform = torch.zeros(batch_size, 8, dtype=torch.float64)
    steps._counters = None
    steps._graph = SimpleNamespace(replay=lambda: fed.add_(table.alive))  # type: ignore[assignment]
    steps.record_time = lambda: None  # type: ignore[method-assign, assignment, return-value]
    return steps


def sequence() -> Any:
    cache = SimpleNamespace(size=5, reserve=lambda slots: None)
    cache.note_tokens = cache.note_decoded = lambda tokens: None
    return SimpleNamespace(
        cache=cache,
        token=3,
        fed=0,
        max_new_tokens=4,
        uniform=torch.zeros(4, dtype=torch.float64),
        sampling=SimpleNamespace(temperature=0.0, top_p=1.0),
    )


def sync(steps: GraphSteps, index: int) -> tuple[int, bool]:
    found = steps.sync(index)
    steps._sequences[index].fed = found[0]
    return found


def test_a_decoder_that_takes_steps_over_finds_none_of_the_last_ones_sequences() -> None:
    """Without that, the sequence at index 0 would go on with the other one's count."""
    steps = graph_steps(2)
    for index in range(2):
        steps.admit(index, sequence())
    for _ in range(3):
        steps.step()
    steps.clear()
    steps.step()
    assert not steps._table.alive.any() and not steps._sequences
    steps.admit(0, sequence())
    steps.step()
    assert sync(steps, 0) == (1, True)
    assert steps._fed.tolist() == [1, 3]


def test_counters_are_read_once_after_a_step_and_follow_admission_and_release() -> None:
    steps = graph_steps(3)
    first, second = sequence(), sequence()
    steps.admit(0, first)
    steps.admit(1, second)
    steps.step()
    assert sync(steps, 0) == (1, True)
    steps.admit(0, first)  # again, after an eviction
    assert sync(steps, 0) == sync(steps, 1) == (1, True)
    steps.release(1)
    steps.admit(1, sequence())
    steps.admit(2, sequence())
    assert sync(steps, 1) == sync(steps, 2) == (0, True)
    for count in (1, 2):
        steps.step()
        assert [sync(steps, index) for index in (2, 0, 1)] == [
            (count, True),
            (1 + count, True),
            (count, True),
        ]
    steps._table.end(torch.tensor([True, False, True]))
    steps.step()
    assert [sync(steps, index) for index in range(3)] == [(4, True), (2, False), (3, True)]
