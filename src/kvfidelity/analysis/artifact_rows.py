"""Rows of thousands of artifact files as one table."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import polars as pl

from kvfidelity.errors import UserError
from kvfidelity.records.artifacts import read_parquet

#: Files that are read at once. Each is a chunk of its own in polars, which takes ten times the
#: memory of a short run's rows until the chunks are joined.
BATCH = 500


def read_runs(
    folder: Path,
    runs: Sequence[str],
    name: str,
    choose: Callable[[pl.LazyFrame], pl.LazyFrame],
) -> Iterator[pl.DataFrame]:
    """The rows of a file that each run has, with the `run` they are from, BATCH runs at once.

    Args:
        folder: of the stage. runs: their paths below it. name: of the file, such as turns.parquet.
        choose: what is kept of the rows.

    Raises:
        UserError: a file is missing or damaged.
    """
    start = len(str(folder)) + 1
    run = pl.col("run").str.slice(start).str.head(-len(name) - 1)
    for files in _batches(folder, runs, name):
        rows = pl.scan_parquet(files, include_file_paths="run", glob=False)
        yield _read(choose(rows.with_columns(run)), files)


def read_dialogues(folder: Path, dialogues: Sequence[str], name: str) -> pl.DataFrame:
    """The rows of a file that each dialogue has; they say which run they are from.

    Raises:
        UserError: a file is missing or damaged.
    """
    batches = _batches(folder, dialogues, name)
    return joined(_read(pl.scan_parquet(files, glob=False), files) for files in batches)


def joined(batches: Iterable[pl.DataFrame]) -> pl.DataFrame:
    """All batches in one table.

    Raises:
        UserError: their columns differ.
    """
    try:
        return pl.concat(batches, rechunk=True)
    except pl.exceptions.PolarsError as error:
        raise _damaged(error) from None


def _batches(folder: Path, keys: Sequence[str], name: str) -> Iterator[list[str]]:
    files = [f"{folder}/{key}/{name}" for key in keys]
    missing = next((file for file in files if not Path(file).is_file()), None)
    if missing:
        raise UserError(f"{missing} does not exist: run the workflow to make it")
    return (files[first : first + BATCH] for first in range(0, len(files), BATCH))


def _read(rows: pl.LazyFrame, files: Sequence[str]) -> pl.DataFrame:
    try:
        return rows.collect(engine="streaming").rechunk()
    except (pl.exceptions.PolarsError, pl.exceptions.PanicException, OSError) as error:
        # One by one, for polars does not always say which file it is.
        for file in files:
            read_parquet(Path(file), kind=Path(file).stem)
        raise _damaged(error) from None


def _damaged(error: BaseException) -> UserError:
    reason = str(error).split("\n")[0]
    return UserError(f"an artifact is damaged ({reason}): delete it and run again")
