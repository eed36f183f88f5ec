"""Tables as files: Parquet for programs, CSV for people."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import polars as pl

from kvfidelity.analysis.finite import refuse_not_finite
from kvfidelity.analysis.table_names import table_endings
from kvfidelity.atomic_files import write_text
from kvfidelity.records.artifacts import write_parquet


def write_table(folder: Path, name: str, table: pl.DataFrame, notes: Mapping[str, str]) -> None:
    """Write NAME.parquet, and NAME.csv unless it is a large table.

    Args:
        notes: of how the table was made, see `staleness.notes_of`.

    Raises:
        NotFiniteError: a number in it is not finite.
    """
    refuse_not_finite(name, table)
    write_parquet(table, folder / f"{name}.parquet", kind=name, metadata=notes)
    if "csv" in table_endings(name):
        write_text(folder / f"{name}.csv", table.write_csv())
