"""A dialogue's jobs name the files of all its runs; more than a command can hold are refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from kvfidelity.pipeline.preflight import faults
from kvfidelity.records.grid import cells
from tests.analysis.synthetic import settings

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(("policies", "refused"), [(300, False), (600, True)])
def test_more_cells_than_a_command_can_name_are_refused(policies: int, refused: bool) -> None:
    named = {f"policy_of_a_long_name_{n}": {"kind": "streaming_llm"} for n in range(policies)}
    chosen = settings(1, policies={"baseline": {"kind": "baseline"}} | named)
    found = faults(chosen, Path("results"), computes_here=False, root=ROOT)
    lines = [line for line in found if line.startswith("grid:")]
    assert len(lines) == refused
    if refused:
        assert f"{len(cells(chosen))} cells" in lines[0] and "split the grid" in lines[0]
