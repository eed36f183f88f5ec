"""Columns are declared once; tables and docs/results.md agree with the declarations."""

from __future__ import annotations

from pathlib import Path

import polars as pl

from kvfidelity.analysis.columns import TABLES, table_schema
from kvfidelity.analysis.results_docs import results_docs
from kvfidelity.analysis.table_names import TABLES_OF_RULE
from kvfidelity.analysis.tables import build_tables
from kvfidelity.records.columns import ARTIFACTS
from kvfidelity.records.declaration import columns
from tests.analysis.empty import empty_tables
from tests.analysis.synthetic import settings, write

ROOT = Path(__file__).parents[2]


def test_docs_results_is_current() -> None:
    """If not: `python -m kvfidelity.analysis.results_docs > docs/results.md`."""
    assert (ROOT / "docs/results.md").read_text() == results_docs()


def test_every_column_has_a_meaning() -> None:
    declared = [info for tables in ARTIFACTS.values() for info in columns(*tables)]
    declared += [info for infos in TABLES.values() for info in infos]
    assert len(declared) > 300
    assert [info.name for info in declared if len(info.meaning) < 4] == []


def test_tables_have_the_declared_columns_with_and_without_rows(tmp_path: Path) -> None:
    write(tmp_path, settings(2), {}, probes=1)
    with_rows = build_tables(settings(2), tmp_path)
    for name, table in (*empty_tables().items(), *with_rows.items()):
        assert list(table.schema.items()) == list(pl.Schema(table_schema(name)).items()), name


def test_every_table_has_columns_and_a_rule_that_writes_it(tmp_path: Path) -> None:
    written = [name for names in TABLES_OF_RULE.values() for name in names]
    assert sorted(written) == sorted(TABLES)
    write(tmp_path, settings(1), {}, probes=1)
    assert set(build_tables(settings(1), tmp_path)) == set(TABLES_OF_RULE["aggregate"])
