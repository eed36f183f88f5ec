"""Two results folders compared: which cells moved, and which decisions on claims."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import polars as pl

from kvfidelity.analysis.shares import clustered_share
from kvfidelity.analysis.statistics import clustered_mean, weighted_mean
from kvfidelity.errors import UserError
from kvfidelity.records.artifacts import read_parquet
from kvfidelity.records.grid import CELL_COLUMNS
from kvfidelity.report.formatting import interval, signed
from kvfidelity.report.paper_tables import cell_name, markdown


class Quantity(NamedTuple):
    """What is compared: a table's column, the rows that count, and what makes two rows a pair."""

    title: str
    table: str
    value: str
    weight: pl.Expr
    rows: pl.Expr
    cell: tuple[str, ...]
    paired: tuple[str, ...]


EXCESS = Quantity(
    "Excess NLL, nats per reference token",
    "turns",
    "excess_nll",
    pl.col("reference_tokens"),
    pl.col("after_eviction") & pl.col("inside_window"),
    CELL_COLUMNS,
    ("dialogue_id", "seed", "turn"),
)
RECALLED = Quantity(
    "Recall, share of questions answered right",
    "recall",
    "recalled",
    pl.lit(1),
    pl.col("after_eviction") | (pl.col("kind") == "baseline"),
    (*CELL_COLUMNS, "origin", "depth"),
    # The answer is part of the pair: other facts under the same number are another question.
    ("dialogue_id", "seed", "turn", "probe", "subject"),
)


class Summary(NamedTuple):
    """A table of estimates whose rows are set side by side: its keys and the estimate."""

    title: str
    table: str
    keys: tuple[str, ...]
    value: str


SUMMARIES = (
    Summary("Mean verdict, 1 to 10", "verdict_means", ("judge", *CELL_COLUMNS), "mean"),
    Summary(
        "Own replies, nats per token after the baseline's history",
        "own_replies",
        CELL_COLUMNS,
        "history_nll",
    ),
    Summary(
        "Change along the window, nats per token",
        "window_changes",
        ("model", "dataset", "change"),
        "mean",
    ),
    Summary(
        "Largest overshoot of prefill, share of the threshold",
        "prefill_overshoot",
        ("model", "policy", "threshold"),
        "share_max",
    ),
)


def compare(first: Path, second: Path, options: dict[str, Any]) -> str:
    """Markdown: excess NLL and recall of every cell that both runs have, B minus A, what only one
    has, estimates of other tables side by side, and claims whose decisions differ.

    Where the runs share turns of the same dialogues (by the dialogue's own id) the difference is
    paired and has an interval; where they do not, only the two means are given.

    Args:
        first, second: results folders, A and B.
        options: confidence, resamples, seed.

    Raises:
        UserError: a folder without finished tables.
    """
    parts = [f"A: {first}, B: {second}."]
    for quantity in (EXCESS, RECALLED):
        parts += _quantity(quantity, _read(first, quantity), _read(second, quantity), options)
    for summary in SUMMARIES:
        parts += _summary(summary, first, second)
    parts += _decisions(first, second)
    return "\n\n".join(part.rstrip("\n") for part in parts) + "\n"


def _quantity(
    quantity: Quantity, first: pl.DataFrame, second: pl.DataFrame, options: dict[str, Any]
) -> list[str]:
    if first.is_empty() and second.is_empty():
        return []
    cells = [set(table.select(quantity.cell).unique().rows()) for table in (first, second)]
    head = ["cell", "A", "B", "B − A", "interval", "shared dialogues"]
    rows = [_row(quantity, cell, first, second, options) for cell in sorted(cells[0] & cells[1])]
    parts = [f"## {quantity.title}"]
    parts.append(markdown(head, rows) if rows else "No cell is in both runs.")
    for name, only in (("A", cells[0] - cells[1]), ("B", cells[1] - cells[0])):
        if only:
            parts.append(f"Only in {name}: {'; '.join(', '.join(cell) for cell in sorted(only))}.")
    return parts


def _row(
    quantity: Quantity,
    cell: tuple[Any, ...],
    first_rows: pl.DataFrame,
    second_rows: pl.DataFrame,
    options: dict[str, Any],
) -> list[str]:
    same = [pl.col(name) == value for name, value in zip(quantity.cell, cell, strict=True)]
    first, second = first_rows.filter(same), second_rows.filter(same)
    pairs = second.join(first.select(*quantity.paired, before="value"), on=quantity.paired)
    cells = [", ".join(cell), signed(_mean(first)), signed(_mean(second))]
    if pairs.is_empty():
        return [*cells, signed(None), "no shared turns", "0"]
    difference = (pairs["value"] - pairs["before"]).to_numpy()
    arrays = (pairs["weight"].to_numpy(), pairs["dialogue_id"].to_numpy().astype(str))
    if quantity is RECALLED:
        found = clustered_share(difference, *arrays, paired=True, **options)
    else:
        found = clustered_mean(difference, *arrays, **options)
    ends = {"low": found.low, "high": found.high, "n_dialogues": found.n_dialogues}
    interval_text = interval(ends) if difference.any() else "equal in every turn"
    return [*cells, signed(found.mean), interval_text, str(found.n_dialogues)]


def _mean(rows: pl.DataFrame) -> float | None:
    return weighted_mean(rows["value"].to_numpy(), rows["weight"].to_numpy())


def _read(folder: Path, quantity: Quantity) -> pl.DataFrame:
    file = Path(folder) / "tables" / f"{quantity.table}.parquet"
    if not file.is_file():
        raise UserError(
            f"{folder} holds no finished run (no tables/{file.name}): run the workflow there first"
        )
    rows = read_parquet(file, kind=quantity.table)
    value = pl.col(quantity.value).cast(pl.Float64)
    return rows.filter(quantity.rows, value.is_not_null()).select(
        *quantity.cell, *quantity.paired, value=value, weight=quantity.weight.cast(pl.Float64)
    )


def _summary(summary: Summary, first: Path, second: Path) -> list[str]:
    """Estimates that both folders have, without an interval of their difference."""
    files = [Path(folder) / f"tables/{summary.table}.parquet" for folder in (first, second)]
    if not all(file.is_file() for file in files):
        return []
    a, b = (
        {
            tuple(row[key] for key in summary.keys): row[summary.value]
            for row in read_parquet(file, kind=summary.table).to_dicts()
            if row[summary.value] is not None
        }
        for file in files
    )
    shared = sorted(a.keys() & b.keys())
    rows = [[", ".join(k), signed(a[k]), signed(b[k]), signed(b[k] - a[k])] for k in shared]
    return [f"## {summary.title}", markdown(["row", "A", "B", "B − A"], rows)] if rows else []


def _decisions(first: Path, second: Path) -> list[str]:
    """Claims, cell by cell, whose decisions differ; empty if a run has no claims."""
    files = [Path(folder) / "tables/claims.parquet" for folder in (first, second)]
    if not all(file.is_file() for file in files):
        return []
    decisions = [
        {
            (row["claim"], row["model"] or "", row["dataset"] or "", cell_name(row)): (
                f"{row['decision']} ({signed(row['estimate'])})"
            )
            for row in read_parquet(file, kind="claims").to_dicts()
        }
        for file in files
    ]
    keys = sorted(decisions[0].keys() & decisions[1].keys())
    rows = [
        [*key, decisions[0][key], decisions[1][key]]
        for key in keys
        if decisions[0][key].split(" (")[0] != decisions[1][key].split(" (")[0]
    ]
    head = ["claim", "model", "dataset", "cell", "A", "B"]
    same = f"{len(keys) - len(rows)} of {len(keys)} shared decisions are the same."
    return ["## Claims", same, *([markdown(head, rows)] if rows else [])]
