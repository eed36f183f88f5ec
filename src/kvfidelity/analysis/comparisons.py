"""What judges say that compare replies, and how much of it is the order in which they stand."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import polars as pl

from kvfidelity.analysis.columns import table_schema
from kvfidelity.analysis.finite import missing_if_not_finite
from kvfidelity.analysis.pairs import PAIRED, unpaired_turns
from kvfidelity.analysis.shares import column_share
from kvfidelity.analysis.statistics import Estimate
from kvfidelity.judges.comparison import BETTER, SCHEMA, TIE, WORSE
from kvfidelity.records.artifacts import read_parquet
from kvfidelity.records.grid import CELL_COLUMNS, RUN_FIELDS, runs_by_dialogue

PAIRS, ORDER = "pairs", "order"


def gather_comparisons(settings: Mapping[str, Any], results: Path) -> pl.DataFrame:
    """Comparisons of all runs, with the cell and dialogue that each is from.

    Args:
        settings: what says which runs there are, and in `comparing` which judges compare.

    Raises:
        UserError: an artifact is missing or damaged.
    """
    frames = [pl.DataFrame(schema={**SCHEMA, **dict.fromkeys(RUN_FIELDS, pl.String)})]
    part = pl.col("run").str.split("/")
    columns = {name: part.list.get(place) for place, name in enumerate(RUN_FIELDS)}
    for judge in settings["comparing"]:
        for dialogue in runs_by_dialogue(settings):
            file = results / "comparisons" / judge / dialogue / "comparisons.parquet"
            found = missing_if_not_finite(read_parquet(file, kind="comparisons"))
            frames.append(found.with_columns(**columns).drop("run"))
    return pl.concat(frames)


#: The columns of `turns` that the table of comparisons is made with.
COLUMNS_OF_TURNS = (
    *(*PAIRED, "policy", "positions", "threshold", "kind", "after_eviction", "finish_reason"),
    "reply_token_count",
)


def comparison_table(
    comparisons: pl.DataFrame, turns: pl.DataFrame, options: Mapping[str, Any]
) -> pl.DataFrame:
    """One row per judge and cell: its replies after an eviction against the baseline's.

    Before its first eviction a run is the baseline: the same text twice says nothing of a cell.

    value: share of better minus share of worse replies, in [-1, 1], with its interval over
        dialogues. tie: neither, or not the same in both orders. order_decided: ties in which
        both orders chose the reply at the same position. n_unpaired: turns on which only one of
        the two has a reply.

    Args:
        comparisons: what `gather_comparisons` gives.
        turns: the table of that name.
    """
    if comparisons.is_empty():
        return pl.DataFrame(schema=table_schema("comparisons"))
    rows = []
    keys = ["judge", "judge_model", *CELL_COLUMNS]
    turn = ["model", "dataset", "policy", "positions", "threshold", "seed", "dialogue", "turn"]
    evicted = turns.filter("after_eviction").select(turn).cast(dict.fromkeys(turn[:-1], pl.String))
    after_eviction = comparisons.join(evicted, on=turn, how="semi")
    with_reply = after_eviction.filter(pl.col("status") != "no_reply")
    unpaired = unpaired_turns(turns, pl.col("reply_token_count").is_not_null())
    for key, part in with_reply.group_by(keys, maintain_order=True):
        given = part.drop_nulls("outcome")
        counts = {name: given.filter(outcome=name).height for name in (BETTER, WORSE, TIE)}
        row = dict(zip(keys, key, strict=True)) | counts
        row |= {"order_decided": int(given.select(_order_decided().sum()).item() or 0)}
        row |= {"missing": part.height - given.height, "n": given.height}
        row |= {"n_unpaired": unpaired.get(key[2:], 0)}
        cut = part.filter(pl.col("messages_cut") > 0)
        row |= {"history_cut": cut.height, "messages_cut": cut["messages_cut"].sum()}
        rows.append(row | _columns(column_share(given, _preference_value(), options, paired=True)))
    return pl.DataFrame(rows, table_schema("comparisons")).sort(keys)


def pairwise_reliability(pairs: pl.DataFrame, options: Mapping[str, Any]) -> pl.DataFrame:
    """Rows of the table of reliability, for judges that compare.

    pairs: how often the good reply is preferred to its corruption `against`, ties counting half;
        share: share of pairs in which the order decided. order: how much more often the first reply
        is chosen than the second, as a share of all choices, in [-1, 1].
    """
    rows: list[dict[str, Any]] = []
    keys = ["judge", "judge_kind", "judge_model", "model", "dataset"]
    for key, part in pairs.group_by(keys, maintain_order=True):
        identity = dict(zip(keys, key, strict=True)) | {"replies": "corrupted"}
        rows += (identity | row for row in _of_one_judge(part, options))
    return pl.DataFrame(rows, table_schema("reliability"))


def _of_one_judge(part: pl.DataFrame, options: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    for (kind,), corrupted in part.group_by("kind", maintain_order=True):
        given = corrupted.drop_nulls("outcome")
        row: dict[str, Any] = {"measure": PAIRS, "against": kind, "n": given.height}
        row |= {"missing": corrupted.height - given.height}
        order = column_share(given, _order_decided(), options)
        row |= {"share": order.mean, "share_low": order.low, "share_high": order.high}
        yield row | _columns(column_share(given, (_preference_value() + 1) / 2, options))
    answered = part.drop_nulls("choice")
    first = [
        pl.when(pl.col(name) == "first").then(1.0).when(pl.col(name) == "second").then(-1.0)
        for name in ("choice", "choice_swapped")
    ]
    bias = pl.mean_horizontal(*(value.otherwise(0.0) for value in first))
    row = {"measure": ORDER, "n": answered.height, "missing": part.height - answered.height}
    yield row | _columns(column_share(answered, bias, options, paired=True))


def _columns(found: Estimate) -> dict[str, Any]:
    estimate = {"value": found.mean, "low": found.low, "high": found.high}
    return estimate | {"n_dialogues": found.n_dialogues}


def _preference_value() -> pl.Expr:
    outcome = pl.col("outcome")
    return pl.when(outcome == BETTER).then(1.0).when(outcome == WORSE).then(-1.0).otherwise(0.0)


def _order_decided() -> pl.Expr:
    same = pl.col("choice") == pl.col("choice_swapped")
    return same.fill_null(False) & (pl.col("choice") != TIE)
