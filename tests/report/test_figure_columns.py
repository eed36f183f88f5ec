"""A figure is drawn from the columns that its entry names, and these are what is read."""

from __future__ import annotations

from pathlib import Path

import polars as pl
import pytest

from kvfidelity.analysis.table_files import write_table
from kvfidelity.analysis.tables import build_tables
from kvfidelity.report.figure_registry import (
    FIGURES,
    TABLES,
    Figure,
    chart_of,
    columns_of,
    read_tables,
)
from kvfidelity.report.figure_rows import figure_rows
from kvfidelity.report.theme import with_theme
from tests.analysis.synthetic import settings, write

COSTS = {("attention_top", "stale"): 2.0, ("sliding_window_gist", "stale"): 0.5}


@pytest.fixture(scope="module")
def tables(tmp_path_factory: pytest.TempPathFactory) -> dict[str, pl.DataFrame]:
    folder = tmp_path_factory.mktemp("results")
    write(folder, settings(4), COSTS, noise=0.02)
    return build_tables(settings(4), folder)


@pytest.mark.parametrize(
    "figure", [one for one in FIGURES if one.columns], ids=lambda one: one.name
)
def test_a_figure_needs_no_other_columns(figure: Figure, tables: dict[str, pl.DataFrame]) -> None:
    own = {}
    for name in figure.tables:
        chosen = columns_of(name, [figure])
        table = tables[name]
        own[name] = table if chosen is None else table.select(sorted(chosen))
    whole = figure_rows(with_theme(chart_of(figure, tables)))
    assert figure_rows(with_theme(chart_of(figure, own))).equals(whole) and whole.height > 1


def test_columns_that_no_figure_names_are_not_read(
    tables: dict[str, pl.DataFrame], tmp_path: Path
) -> None:
    for name in TABLES:
        write_table(tmp_path, name, tables[name], {})
    read = read_tables(tmp_path)
    for name, table in read.items():
        whole = tables[name]
        named = columns_of(name)
        assert table.equals(whole if named is None else whole.select(table.columns))
    assert set(read["turns"].columns) == columns_of("turns") < set(tables["turns"].columns)
    assert columns_of("turns", [Figure("new", "", ("turns",), "", "", "", "")]) is None
