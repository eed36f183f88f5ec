"""What the tables say of comparisons with known outcomes."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from kvfidelity.analysis.columns import table_schema
from kvfidelity.analysis.comparisons import (
    comparison_table,
    gather_comparisons,
    pairwise_reliability,
)
from kvfidelity.analysis.reliability import costs
from kvfidelity.analysis.verdicts import missing_by_cell
from kvfidelity.judges.comparison import CORRUPTION_COMPARISONS, RUN_COMPARISONS, SCHEMA
from kvfidelity.pipeline.rule_params import grid_settings
from kvfidelity.records.artifacts import write_parquet
from kvfidelity.records.grid import RunKey, compared_run_keys, dialogue_of
from tests.analysis.synthetic import settings

OPTIONS = {"confidence": 0.95, "resamples": 300, "seed": 0}
JUDGE = {"kind": "openai", "rubric": "pairwise", "model": "m"}


def write(results: Path, rows: dict[str, list[dict[str, Any]]]) -> None:
    """The comparisons of runs, one file for each dialogue."""
    of_dialogue: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for run, found in rows.items():
        of_dialogue[dialogue_of(run)] += [{"run": run} | row for row in found]
    for dialogue, together in of_dialogue.items():
        file = results / "comparisons/pairs" / dialogue / "comparisons.parquet"
        write_parquet(pl.DataFrame(together, RUN_COMPARISONS), file, kind="comparisons")


def comparison(turn: int, outcome: str | None, *choices: str) -> dict[str, Any]:
    about = {"turn": turn, "judge": "pairs", "judge_kind": "openai", "judge_model": "m"}
    about |= {"rubric": "pairwise", "outcome": outcome}
    if choices:
        about |= {"choice": choices[0], "choice_swapped": choices[1]}
    about |= {"status": "ok" if choices else "failed", "request": f"{turn} {outcome} {choices}"}
    return about | {"prompt_tokens": 10, "completion_tokens": 2, "cost_usd": 0.5, "answers": 2}


def turns_of(runs: list[str], evicted: int = 0, count: int = 6) -> pl.DataFrame:
    """Turns of these runs and of their baselines; a run evicts before turn `evicted`."""
    keys = {RunKey.from_path(run) for run in runs}
    baselines = {
        key._replace(policy="baseline", positions="original", threshold="none") for key in keys
    }
    rows = [
        {**key._asdict(), "kind": key.policy, "replies": "own", "turn": turn}
        | {"after_eviction": key.policy != "baseline" and turn >= evicted}
        | {"finish_reason": "eos", "reply_token_count": 5}
        for key in sorted(keys | baselines)
        for turn in range(count)
    ]
    return pl.DataFrame(rows, infer_schema_length=None).cast({"turn": pl.Int32, "seed": pl.Int64})


ROWS = [
    comparison(0, "better", "first", "second"),
    comparison(1, "worse", "second", "first"),
    comparison(2, "worse", "second", "first"),
    comparison(3, "tie", "first", "first"),
    comparison(4, "tie", "tie", "tie"),
    comparison(5, None),
]


def test_a_cells_balance_ties_and_what_the_place_decided(tmp_path: Path) -> None:
    chosen = settings(2, judges={"pairs": JUDGE}, judging=["pairs"])
    reliability_rows = grid_settings(chosen)
    assert reliability_rows["judging"] == [] and reliability_rows["comparing"] == ["pairs"]
    runs = compared_run_keys(chosen)
    assert runs and not any("/baseline/" in run for run in runs)
    write(tmp_path, dict.fromkeys(runs, ROWS))
    gathered = gather_comparisons(reliability_rows, tmp_path)
    assert gathered.height == 6 * len(runs)
    table = comparison_table(gathered, turns_of(runs), OPTIONS)
    assert table.height == len(runs) / 2
    for row in table.to_dicts():
        assert row["value"] == pytest.approx(-1 / 5)
        assert (row["better"], row["worse"], row["tie"], row["order_decided"]) == (2, 4, 4, 2)
        assert (row["n"], row["missing"], row["n_dialogues"]) == (10, 2, 2)
    [cost] = costs({"pairs": pl.DataFrame(ROWS, SCHEMA)}).to_dicts()
    assert (cost["answers"], cost["usd"], cost["missing"]) == (12, 3.0, 1)


def test_no_comparing_judge_gives_an_empty_table(tmp_path: Path) -> None:
    reliability_rows = grid_settings(settings(2))
    gathered = gather_comparisons(reliability_rows, tmp_path)
    nothing = turns_of(compared_run_keys(settings(2)))
    found = comparison_table(gathered, nothing, OPTIONS)
    assert found.schema == pl.Schema(table_schema("comparisons"))


def test_turns_before_an_eviction_are_no_ties_and_what_has_no_pair_is_counted(
    tmp_path: Path,
) -> None:
    """Every evicted turn is worse and the turns before are the same text: -1, not -0.5."""
    chosen = settings(2, judges={"pairs": JUDGE}, judging=["pairs"])
    runs = compared_run_keys(chosen)
    same = [comparison(turn, "tie") | {"status": "same"} for turn in range(3)]
    rows = same + [comparison(turn, "worse", "second", "first") for turn in range(3, 6)]
    write(tmp_path, dict.fromkeys(runs, rows))
    gathered = gather_comparisons(grid_settings(chosen), tmp_path)
    turns = turns_of(runs, evicted=3)
    table = comparison_table(gathered, turns, OPTIONS)
    assert table["value"].to_list() == [-1] * table.height
    assert table["n"].to_list() == [6] * table.height  # three turns of two dialogues
    assert table["n_unpaired"].to_list() == [0] * table.height
    # Memory runs out for one dialogue's baseline at its last turn, for another's runs at turn 4.
    first, last = sorted(turns["dialogue"].unique())
    gone = pl.col("kind") == "baseline"
    failed = (gone & (pl.col("dialogue") == first) & (pl.col("turn") == 5)) | (
        ~gone & (pl.col("dialogue") == last) & (pl.col("turn") == 4)
    )
    after = ~gone & (pl.col("dialogue") == last) & (pl.col("turn") > 4)
    cut = turns.filter(~after).with_columns(
        finish_reason=pl.when(failed).then(pl.lit("out_of_memory")).otherwise("finish_reason"),
        reply_token_count=pl.when(~failed).then("reply_token_count"),
    )
    table = comparison_table(gathered, cut, OPTIONS)
    assert table["n_unpaired"].to_list() == [3] * table.height


@pytest.mark.parametrize("all_miss", [True, False])
def test_whether_missing_comparisons_depend_on_the_cell_is_told(
    tmp_path: Path, all_miss: bool
) -> None:
    """Equal texts are not missing, though no model was asked."""
    chosen = settings(12, judges={"pairs": JUDGE}, judging=["pairs"])
    runs = compared_run_keys(chosen)
    cell = sorted({run.rsplit("/", 1)[0] for run in runs})[0]
    same = comparison(0, "tie") | {"status": "same"}
    given = [same, *(comparison(turn, "worse", "second", "first") for turn in range(1, 6))]
    lacking = [*given[:4], comparison(4, None), comparison(5, None)]
    write(
        tmp_path,
        {run: lacking if all_miss or run.startswith(f"{cell}/") else given for run in runs},
    )
    gathered = gather_comparisons(grid_settings(chosen), tmp_path)
    [row] = missing_by_cell(gathered, OPTIONS, "missing_comparisons").to_dicts()
    assert row["judge"] == "pairs" and row["turns"] == 12 * 6
    assert row["most_share"] == pytest.approx(1 / 3)
    if all_miss:
        assert row["p"] is None and row["fewest_share"] == row["most_share"]
    else:
        assert row["p"] < 0.01 and row["fewest_share"] == 0
        assert row["most"].split()[0] in cell.split("/")


def test_position_bias_and_preference_for_good_replies() -> None:
    rows = [
        row | {"item": number, "dialogue": f"{number % 3}", "kind": "shuffle"}
        for number, row in enumerate(ROWS)
    ]
    columns = {**CORRUPTION_COMPARISONS, "model": pl.String, "dataset": pl.String}
    frame = pl.DataFrame([row | {"model": "a", "dataset": "b"} for row in rows], columns)
    table = pairwise_reliability(frame, OPTIONS)
    pairs = table.filter(measure="pairs").row(0, named=True)
    assert pairs["value"] == pytest.approx((1 + 0 + 0 + 0.5 + 0.5) / 5)
    assert (pairs["share"], pairs["n"], pairs["missing"]) == (pytest.approx(0.2), 5, 1)
    order = table.filter(measure="order").row(0, named=True)
    assert order["value"] == pytest.approx(1 / 5)  # one of five pairs went to the first reply twice
