"""What an interval decides, by hand."""

from __future__ import annotations

import pytest

from kvfidelity.analysis.decisions import decide
from kvfidelity.analysis.statistics import MIN_DIALOGUES, MIN_DIALOGUES_WITHIN

Ends = tuple[float | None, float | None]


def decided(
    direction: str,
    margin: float,
    ends: Ends,
    dialogues: int = 40,
    strict_ends: Ends | None = None,
    **options: object,
) -> str:
    low, high = ends
    strict_low, strict_high = ends if strict_ends is None else strict_ends
    row = {"low": low, "high": high, "strict_low": strict_low, "strict_high": strict_high}
    return decide(direction, margin, row | {"n_dialogues": dialogues}, **options)[0]  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("direction", "interval", "expected"),
    [
        ("above", (0.2, 0.3), "supported"),
        ("above", (-0.1, 0.05), "contradicted"),
        ("above", (0.05, 0.2), "not decided"),
        ("below", (-0.3, -0.2), "supported"),
        ("below", (0.0, 0.1), "contradicted"),
        ("within", (-0.1, 0.1), "supported"),
        ("within", (0.2, 0.3), "contradicted"),
        ("within", (0.0, 0.2), "not decided"),
        ("above", (None, None), "not decided"),
    ],
)
def test_decisions_by_hand(direction: str, interval: Ends, expected: str) -> None:
    assert decided(direction, 0.1, interval) == expected


def test_beyond_a_margin_the_strict_interval_decides() -> None:
    assert decided("above", 0.1, (0.2, 0.3), strict_ends=(0.05, 0.4)) == "not decided"
    assert decided("above", 0, (0.1, 0.3), strict_ends=(-0.1, 0.5)) == "supported"
    few = MIN_DIALOGUES_WITHIN - 1
    assert decided("above", 0, (0.1, 0.3), few, strict_ends=(-0.1, 0.5)) == "not decided"
    assert decided("above", 0, (0.1, 0.3), strict_ends=(-0.1, 0.5), strict=True) == "not decided"


@pytest.mark.parametrize("direction", ["above", "below", "within"])
def test_no_claim_can_ask_for_fewer_dialogues_than_a_decision_takes(direction: str) -> None:
    for ends in ((-0.01, 0.01), (5.0, 6.0), (-6.0, -5.0)):
        assert decided(direction, 0.1, ends, MIN_DIALOGUES - 1, least=2) == "not decided"
        assert decided(direction, 0.1, ends, 25, least=26) == "not decided"


def test_that_something_is_small_takes_more_dialogues() -> None:
    small = (-0.01, 0.01)
    assert decided("within", 0.1, small, MIN_DIALOGUES_WITHIN - 1) == "not decided"
    assert decided("within", 0.1, small, MIN_DIALOGUES_WITHIN) == "supported"
    assert decided("within", 0.1, (0.2, 0.3), MIN_DIALOGUES) == "contradicted"


def test_the_reason_names_what_is_missing() -> None:
    row = dict.fromkeys(("low", "high", "strict_low", "strict_high"), 1.0) | {"n_dialogues": 6}
    assert decide("above", 0.1, row)[1] == f"6 of the {MIN_DIALOGUES} dialogues that it takes"
