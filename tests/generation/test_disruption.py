"""A run that measures the disruption of its evictions, and runs with shifted positions."""

from __future__ import annotations

import pytest
from polars.testing import assert_frame_equal

from kvfidelity.decoding.engine import Engine
from kvfidelity.errors import UserError
from kvfidelity.records.columns import DISRUPTION
from tests.generation.test_run import rounded, run


@pytest.mark.parametrize("kind", ["streaming_llm", "snapkv"])
def test_measuring_changes_nothing_else_and_fills_turns_from_the_first_eviction(
    engine: Engine, kind: str
) -> None:
    """Also of a policy that keeps other slots in each kv head and looks through queries itself."""
    parameters = {"window": 4} if kind == "snapkv" else {}
    with_it, without = (
        run(engine, kind=kind, parameters=parameters, positions="stale", disruption_window=window)
        for window in (8, 0)
    )
    assert_frame_equal(
        rounded(with_it.turns.drop(*DISRUPTION)), rounded(without.turns.drop(*DISRUPTION))
    )
    assert without.turns.select(*DISRUPTION).null_count().row(0) == (without.turns.height,) * 3
    evicted = with_it.turns["evictions"].cum_sum() > 0
    assert 0 < evicted.sum() < with_it.turns.height
    assert with_it.turns.filter(~evicted)["disruption_positions"].null_count() == (~evicted).sum()
    after = with_it.turns.filter(evicted)
    assert after["disruption_positions"].min() > 0 and after["disruption_tokens"].min() > 0
    log = with_it.evictions.filter(turn=after["turn"][0])
    assert after["disruption_positions"][0] == pytest.approx(log["disruption_positions"].mean())
    assert len(log["disruption_tokens_by_head"][0]) > 0


def test_original_positions_are_not_disrupted_and_a_shift_of_0_is_original(engine: Engine) -> None:
    original, none, some = (
        run(engine, positions=mode, disruption_window=8)
        for mode in ("original", "shifted+0", "shifted-20")
    )
    known = original.turns.drop_nulls("disruption_positions")
    assert known.height and known["disruption_positions"].max() == 0
    assert_frame_equal(
        rounded(original.turns.drop("positions")), rounded(none.turns.drop("positions"))
    )
    assert some.turns.drop_nulls("disruption_positions")["disruption_positions"].min() > 0
    assert (
        some.turns["signed_offset_error"].min() < 0 == original.turns["signed_offset_error"].min()
    )


def test_what_cannot_be_measured_or_shifted_is_refused_before_anything_is_computed(
    engine: Engine,
) -> None:
    with pytest.raises(UserError, match=r"disruption_window is 129; at most 128 queries"):
        run(engine, disruption_window=129)
    with pytest.raises(UserError, match=r"positions shifted-251: .* by at least -250"):
        run(engine, positions="shifted-251")
