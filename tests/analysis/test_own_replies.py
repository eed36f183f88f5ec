"""The table of own replies, and what claims count as a reply that came to an end."""

from __future__ import annotations

from typing import Any

import polars as pl
import pytest

from kvfidelity.analysis.own_replies import came_to_an_end, own_replies
from kvfidelity.records.grid import CELL_COLUMNS

OPTIONS: dict[str, Any] = {"confidence": 0.95, "resamples": 200, "seed": 0}
BASELINE = dict(zip(CELL_COLUMNS, ("m", "d", "baseline", "original", "none"), strict=True))
EVICTED = dict(zip(CELL_COLUMNS, ("m", "d", "gist", "stale", "half"), strict=True))


def turn(cell: dict[str, str], dialogue: int, number: int, **values: Any) -> dict[str, Any]:
    baseline = cell["policy"] == "baseline"
    row = cell | {"dialogue": f"{dialogue:03d}", "turn": number, "seed": 0, "replies": "own"}
    row |= {"kind": "baseline" if baseline else "sliding_window_gist"}
    row |= {"after_eviction": not baseline and number > 0, "finish_reason": "eos"}
    row |= {"inside_window": True, "reply_token_count": 10}
    row |= {"reply_nll_baseline": 1.0, "reply_nll_baseline_history": 1.0}
    return row | {"rep_3": 0.0, "echo_share": 0.0, "chrf": 50.0} | values


def frame(rows: list[dict[str, Any]]) -> pl.DataFrame:
    return pl.DataFrame(rows, infer_schema_length=None)


def test_empty_replies_are_counted_and_do_not_count_as_ended() -> None:
    """Ten dialogues: three replies end, two are cut at their longest, five are empty."""
    empty = {"reply_token_count": 0, "chrf": 0.0}
    empty |= dict.fromkeys(("reply_nll_baseline", "reply_nll_baseline_history"))
    empty |= dict.fromkeys(("rep_3", "echo_share"))
    kinds = [{}] * 3 + [{"finish_reason": "length"}] * 2 + [empty] * 5
    rows = [turn(EVICTED, number, 1, **kind) for number, kind in enumerate(kinds)]
    rows += [turn(EVICTED, 0, 2, finish_reason="out_of_memory", reply_token_count=None)]
    rows += [turn(EVICTED, 1, 2, finish_reason="not_generated", reply_token_count=None)]
    [found] = own_replies(frame(rows), OPTIONS).to_dicts()
    assert (found["n"], found["empty"], found["n_dialogues"]) == (10, 5, 10)
    assert found["complete"] == pytest.approx(0.3)
    assert found["mean"] == pytest.approx(1)
    assert found["chrf"] == pytest.approx(25)


def test_claims_and_the_table_agree_on_what_came_to_an_end() -> None:
    rows = pl.DataFrame(
        {
            "finish_reason": ["eos", "eos", "length", "not_generated", "out_of_memory"],
            "reply_token_count": [3, 0, 9, None, None],
        }
    )
    ended = rows.select(came_to_an_end()).to_series().to_list()
    assert ended == [True, False, False, None, None]


def test_the_ruined_history_of_a_run_does_not_make_its_replies_good() -> None:
    """After its own ruined history a reply is as likely as the baseline's, 1 nat per token; after
    the baseline's history it costs 3. The baseline's easier first turn is of no turn with an
    eviction, and plays no part."""
    rows = []
    for dialogue in range(12):
        own = 1 + dialogue / 100
        rows += [turn(BASELINE, dialogue, 0, reply_nll_baseline_history=0.1)]
        rows += [turn(BASELINE, dialogue, 1, reply_nll_baseline_history=own)]
        rows += [turn(EVICTED, dialogue, 0, reply_nll_baseline_history=0.1)]
        rows += [turn(EVICTED, dialogue, 1, reply_nll_baseline_history=own + 2 + dialogue / 50)]
    base, evicted = own_replies(frame(rows), OPTIONS).sort("policy").to_dicts()
    assert base["n"] == evicted["n"] == 12
    assert base["history_nll"] == pytest.approx(1.055)
    assert evicted["mean"] == pytest.approx(1)
    assert evicted["history_nll"] == pytest.approx(3.165)
    assert evicted["lost"] == pytest.approx(2.11) and evicted["lost_low"] > 2
    assert (evicted["n_pairs"], evicted["n_unpaired"]) == (12, 0)
    assert base["lost"] is None


def test_past_the_trained_window_likelihood_is_left_out_and_words_are_counted() -> None:
    """Turn 2 is past the window in all runs; in one of the baseline already turn 1 is."""
    rows = []
    for dialogue in range(12):
        for number in (1, 2):
            late = {"inside_window": number == 1, "rep_3": 0.5 * (number - 1)}
            rows += [
                turn(EVICTED, dialogue, number, reply_nll_baseline_history=3.0**number, **late)
            ]
            late["inside_window"] &= dialogue > 0
            rows += [turn(BASELINE, dialogue, number, **late)]
    base, evicted = own_replies(frame(rows), OPTIONS).sort("policy").to_dicts()
    assert evicted["history_nll"] == pytest.approx(3) and evicted["lost"] == pytest.approx(2)
    assert (evicted["n_pairs"], evicted["n_unpaired"], evicted["n"]) == (11, 1, 24)
    assert evicted["rep_3"] == pytest.approx(0.25) and base["n"] == 24


def test_replies_without_a_pair_are_counted() -> None:
    """One reply is empty, memory runs out for one run, and for the baseline of another."""
    none = {"reply_token_count": None, "reply_nll_baseline_history": None}
    failed = none | {"finish_reason": "out_of_memory"}
    rows = [turn(BASELINE, dialogue, number) for dialogue in range(3) for number in range(1, 4)]
    rows = [row for row in rows if (row["dialogue"], row["turn"]) != ("002", 3)]
    rows[-1] |= failed
    rows += [turn(EVICTED, 0, number) for number in range(1, 4)]
    rows[-1] |= {"reply_token_count": 0, "reply_nll_baseline_history": None}
    rows += [turn(EVICTED, 1, 1), turn(EVICTED, 1, 2, **failed)]
    rows += [turn(EVICTED, 2, number) for number in range(1, 4)]
    found = own_replies(frame(rows), OPTIONS).filter(policy="gist").to_dicts()[0]
    # 0: the empty one; 1: turns 2 and 3; 2: turns 2 and 3.
    assert (found["n_pairs"], found["n_unpaired"], found["empty"]) == (4, 5, 1)
