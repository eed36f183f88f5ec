"""What an interval decides, by hand."""

from __future__ import annotations

from typing import Any

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
    largest: float | None = None,
    sign: int | None = None,
    core: Ends = (None, None),
    **options: object,
) -> str:
    low, high = ends
    strict_low, strict_high = ends if strict_ends is None else strict_ends
    row = {"low": low, "high": high, "strict_low": strict_low, "strict_high": strict_high}
    row |= {"largest": largest, "sign": sign, "core": core}
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


def test_at_margin_0_the_sign_decides() -> None:
    """The interval that is shown may leave 0 out on the side of a long tail."""
    for dialogues in (MIN_DIALOGUES, MIN_DIALOGUES_WITHIN):
        assert decided("above", 0, (0.1, 0.3), dialogues, sign=1) == "supported"
        assert decided("below", 0, (0.1, 0.3), dialogues, sign=1) == "contradicted"
        assert decided("below", 0, (-0.3, -0.1), dialogues, sign=0) == "not decided"
        assert decided("above", 0, (-0.3, -0.1), dialogues, sign=0) == "not decided"
    assert decided("above", 0.1, (0.2, 0.3), sign=0) == "supported"


@pytest.mark.parametrize(
    ("direction", "margin", "core"),
    [
        ("above", 0, (1.0, 1.04)),
        ("above", 1, (2.0, 2.04)),
        ("below", 0, (-1.04, -1.0)),
        ("below", 1, (2.0, 2.04)),
        ("within", 1, (-2.04, -2.0)),
    ],
)
def test_few_dialogues_that_are_nearly_alike_decide_nothing(
    direction: str, margin: float, core: Ends
) -> None:
    """Their spread is less than a twentieth of how far they are from the margin."""
    few = MIN_DIALOGUES_WITHIN - 1
    assert decided(direction, margin, core, few, core=core) == "not decided"
    assert decided(direction, margin, core, MIN_DIALOGUES_WITHIN, core=core) != "not decided"
    wider = (core[0] - 0.1, core[1] + 0.1)
    assert decided(direction, margin, core, few, core=wider) != "not decided"


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


@pytest.mark.parametrize(("direction", "side"), [("above", 1), ("below", -1)])
def test_what_contradicts_by_being_small_takes_more_dialogues(direction: str, side: int) -> None:
    """ "Loses more than 0.1", where surely less is lost, says the same as "loses little"."""
    few = MIN_DIALOGUES_WITHIN - 1
    small, opposite = ((-0.02, 0.05), (-3.0, -2.0)) if side > 0 else ((-0.05, 0.02), (2.0, 3.0))
    assert decided(direction, 0.1, small, few) == "not decided"
    assert decided(direction, 0.1, small, MIN_DIALOGUES_WITHIN) == "contradicted"
    assert decided(direction, 0.1, opposite, MIN_DIALOGUES) == "contradicted"
    assert decided(direction, 0, opposite, MIN_DIALOGUES) == "contradicted"


def test_rounding_does_not_decide_whether_equal_results_are_equal() -> None:
    """Exactly 0 has no interval, 0 and a rounding error has a narrow one."""
    exact: dict[str, Any] = {"ends": (None, None), "largest": 0.0}
    rounded: dict[str, Any] = {"ends": (-1e-9, 1e-8), "largest": 2e-8}
    for found in (exact, rounded):
        assert decided("within", 0.001, dialogues=MIN_DIALOGUES_WITHIN, **found) == "supported"
        assert decided("above", 0.001, dialogues=MIN_DIALOGUES_WITHIN, **found) == "contradicted"
        few = MIN_DIALOGUES_WITHIN - 1
        assert decided("within", 0.001, dialogues=few, **found) == "not decided"
    # One dialogue with half of the margin is not equal, and how many others have it is unknown.
    assert decided("within", 0.001, (None, None), largest=0.0005) == "not decided"
    assert decided("above", 0, (None, None), largest=0.0) == "not decided"


def test_the_reason_names_what_is_missing() -> None:
    row = dict.fromkeys(("low", "high", "strict_low", "strict_high"), 1.0) | {"n_dialogues": 6}
    assert decide("above", 0.1, row)[1] == f"6 of the {MIN_DIALOGUES} dialogues that it takes"
