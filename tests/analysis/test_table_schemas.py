"""The written schema of the tables is that of the tables."""

from __future__ import annotations

from pathlib import Path

from kvfidelity.analysis.table_schemas import RECORDS, column_meaning, empty_tables, table_schemas
from kvfidelity.analysis.tables import CELL, INTEGRITY, build_tables
from tests.analysis.synthetic import settings, write

NAMES = {*CELL, "kind", "dialogue", "seed", "replies", "trigger", "trained_window"}
SUMS = {"cache_bytes_peak", "prefill_s", "scoring_s", "eviction_s"}


def test_the_written_schema_is_current() -> None:
    """If not: `python -m kvfidelity.analysis.table_schemas >
    src/kvfidelity/analysis/tables.yaml`."""
    file = Path(__file__).parents[2] / "src/kvfidelity/analysis/tables.yaml"
    assert file.read_text() == table_schemas(empty_tables())


def test_every_column_has_a_meaning() -> None:
    silent = {
        f"{name}.{column}"
        for name, table in empty_tables().items()
        for column in table.columns
        if column not in {*RECORDS.get(name, ()), *NAMES, *INTEGRITY, *SUMS}
        and column_meaning(name, column) is None
    }
    assert silent == set()


def test_tables_with_rows_have_that_schema_too(tmp_path: Path) -> None:
    write(tmp_path, settings(2), {}, probes=1)
    empty = empty_tables()
    for name, table in build_tables(settings(2), tmp_path).items():
        assert table.schema == empty[name].schema, name
