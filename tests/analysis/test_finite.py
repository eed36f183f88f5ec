"""What is not finite is never a number: measured, it is missing; computed, it is refused."""

from __future__ import annotations

import math
from pathlib import Path

import altair as alt
import polars as pl
import pytest

from kvfidelity.analysis.table_files import write_table
from kvfidelity.errors import NotFiniteError
from kvfidelity.records.artifacts import read_metadata, read_parquet, write_parquet
from kvfidelity.records.questions import RECALL_COLUMN, questions, with_questions
from kvfidelity.report.theme import save
from tests.analysis.pages import made, page, prose


def read(file: Path) -> tuple[pl.DataFrame, pl.DataFrame]:
    """A run's turns, and its recall questions as a table of their own."""
    turns = read_parquet(file, kind="turns")
    return turns.drop(RECALL_COLUMN), questions(turns.lazy()).collect()


def write(file: Path, turns: pl.DataFrame, asked: pl.DataFrame) -> None:
    """Write them back, with the notes that the file has."""
    notes = {name: read_metadata(file)[name] for name in ("code", "spec", "dtype")}
    write_parquet(with_questions(turns, asked), file, kind="turns", metadata=notes)


def without_a_finite_value(frame: pl.DataFrame) -> pl.DataFrame:
    damaged = [name for name in DAMAGED if name in frame.columns]
    return frame.with_columns(pl.lit(math.nan, pl.Float64).alias(name) for name in damaged)


def test_measured_values_that_are_not_finite_are_missing_and_counted(tmp_path: Path) -> None:
    grid = {"dialogues": 3, "policies": 2, "positions": ["stale"], "turns": 15, "probes": 2}
    chosen = made(tmp_path, grid | {"noise": 0.2, "memory_for": None, "judged": True})
    run = "synthetic/made/attention_top/stale/half/0/001"
    file = tmp_path / f"results/generate/{run}/turns.parquet"
    for kind, column, rows, value in (
        ("turns", "reference_nll", [6, 7], math.nan),
        ("turns", "kl_baseline", [8], math.inf),
        ("turns", "phase_distortion", [9], math.nan),
        ("turns", "reference_token_nll", [10], [1.0, math.nan, math.inf]),
        ("recall", "margin", [0], -math.inf),
        ("recall", "answer_nll", [0], math.inf),
        ("recall", "distractor_nll", [1], [1.0, math.nan, 2.0]),
    ):
        turns, asked = read(file)
        frame = turns if kind == "turns" else asked
        values = frame[column].to_list()
        for row in rows:
            values[row] = value
        frame = frame.with_columns(pl.Series(column, values, frame.schema[column]))
        write(file, *((frame, asked) if kind == "turns" else (turns, frame)))
    text = prose(page(tmp_path, chosen, tested=False))
    tables = tmp_path / "results/tables"
    turns = read_parquet(tables / "turns.parquet", kind="turns").filter(run=run)
    assert turns.filter(pl.col("turn").is_in([6, 7]))["excess_nll"].null_count() == 2
    asked = read_parquet(tables / "recall.parquet", kind="recall").filter(run=run, probe=0)
    assert asked.select("margin", "recalled", "recall_lost").row(0) == (None, None, None)
    assert asked.select("answered", "answer_nll").row(0) == (None, None)
    other = read_parquet(tables / "recall.parquet", kind="recall").filter(run=run, probe=1)
    assert other.select("margin", "recalled", "recall_lost").row(0) == (None, None, None)
    counts = read_parquet(tables / "not_finite.parquet", kind="not_finite")
    assert counts.rows() == [
        ("turns", "reference_nll", 1, 2),
        ("turns", "kl_baseline", 1, 1),
        ("turns", "phase_distortion", 1, 1),
        ("recall", "answer_nll", 1, 1),
        ("recall", "margin", 1, 1),
        ("turns", "reference_token_nll", 1, 2),
        ("recall", "distractor_nll", 1, 1),
    ]
    assert "2 values of reference_nll (turns) in 1 runs; 1 values of kl_baseline" in text


def test_a_grid_of_which_nothing_is_finite_gives_a_page_without_a_number_of_it(
    tmp_path: Path,
) -> None:
    """As runs in float16 gave it, before they stopped: every likelihood NaN, no answer chosen."""
    grid = {"dialogues": 3, "policies": 2, "positions": ["stale"], "turns": 8, "probes": 2}
    chosen = made(tmp_path, grid | {"noise": 0.2, "memory_for": None, "judged": False})
    for file in (tmp_path / "results/generate").rglob("turns.parquet"):
        turns, asked = map(without_a_finite_value, read(file))
        write(file, turns, asked.with_columns(chosen=pl.lit(False)))
    said = prose(page(tmp_path, chosen, tested=False))
    assert "values of reference_nll (turns) in 9 runs" in said
    tables = tmp_path / "results/tables"
    depths = read_parquet(tables / "recall_by_depth.parquet", kind="recall_by_depth")
    assert depths.height and depths["recalled"].null_count() == depths.height
    assert depths["margin_lost_low"].null_count() == depths.height
    contrasts = read_parquet(tables / "contrasts.parquet", kind="contrasts")
    assert contrasts["p"].null_count() == contrasts.height


DAMAGED = {
    "reference_nll",
    "reply_nll",
    "reply_nll_baseline",
    "kl_baseline",
    "answer_nll",
    "margin",
}
DAMAGED |= {"phase_distortion", "phase_distortion_weighted", "mean_offset_error"}


def test_a_table_with_nan_is_refused_by_table_and_column(tmp_path: Path) -> None:
    table = pl.DataFrame({"mean": [1.0, None], "p": [0.5, math.nan]})
    with pytest.raises(NotFiniteError, match=r"^table policies: column p holds [^\n]+$"):
        write_table(tmp_path, "policies", table, {})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_figure_with_nan_is_refused_by_figure_and_field(tmp_path: Path, value: float) -> None:
    rows = pl.DataFrame({"mean": [1.0, 2.0], "high": [2.0, value]})
    chart = alt.Chart(rows).mark_point().encode(x="mean:Q", y="high:Q")
    with pytest.raises(NotFiniteError, match=r"^figure excess: field high holds [^\n]+$"):
        save(chart, tmp_path, "excess")
    assert list(tmp_path.iterdir()) == []
