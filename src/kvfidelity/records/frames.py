"""Frames of what is recorded of a run: one row per turn and one per eviction."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
from torch import Tensor

from kvfidelity.cache.eviction_log import Disruption, Eviction, group_names, groups, span_edges
from kvfidelity.cache.positions import PositionMode
from kvfidelity.cache.ragged import RaggedKeepSet
from kvfidelity.cache.slots import SlotTable, as_grid
from kvfidelity.metrics.positions import Integrity
from kvfidelity.records.columns import (
    DISRUPTION,
    EVICTIONS,
    INTEGRITY_AT_END,
    RECALL_QUESTION,
    TURN,
)
from kvfidelity.records.declaration import schema
from kvfidelity.records.questions import with_questions


def turns_frame(
    rows: Iterable[Mapping[str, Any]], asked: Iterable[Mapping[str, Any]]
) -> pl.DataFrame:
    """One row per turn, with the columns of `TURNS`.

    Args:
        rows: the turns, without `recall`.
        asked: the recall questions, each with its `turn` and the columns of `RECALL_QUESTION`.

    Raises:
        KeyError: a row lacks a column; a missing value must be given as None.
    """
    columns = schema(*TURN)
    turns = _frame(rows, columns)
    return with_questions(turns, _frame(asked, {"turn": columns["turn"], **RECALL_QUESTION}))


def _frame(rows: Iterable[Mapping[str, Any]], columns: Mapping[str, Any]) -> pl.DataFrame:
    return pl.DataFrame([[row[name] for name in columns] for row in rows], columns, orient="row")


def evictions_frame(log: Iterable[Eviction], mode: PositionMode) -> pl.DataFrame:
    """The eviction log, with the columns of `EVICTIONS`: one row per eviction and keep set."""
    slots = SlotTable(mode)
    rows: list[dict[str, Any]] = []
    spans: dict[str, list[Spans]] = {"slot_spans": [], "token_spans": [], "position_spans": []}
    for eviction in log:
        slots.append(eviction.tokens_seen - slots.tokens_seen)
        before = slots.fork()
        slots.keep(eviction.kept)
        if slots.is_ragged or isinstance(eviction.kept, RaggedKeepSet):
            _add_heads(rows, spans, eviction, before, slots)
            continue
        kept = as_grid(eviction.kept)
        for name in group_names(kept):
            sizes = (eviction.slots_before, eviction.slots_after)
            measured = _disruption(eviction, name, kept.shape[1])
            rows.append(_row(eviction, name, *sizes, slots.next_position) | measured)
        spans["slot_spans"].append(Spans.of(kept))
        spans["token_spans"].append(Spans.of(slots.token_index.expand(kept.shape)))
        spans["position_spans"].append(Spans.of_positions(slots.position.expand(kept.shape)))
    schema = {name: kind for name, kind in EVICTIONS.items() if name not in spans}
    columns = [_list_column(name, parts) for name, parts in spans.items()]
    return pl.DataFrame(rows, schema).with_columns(columns).select(list(EVICTIONS))


def _row(
    eviction: Eviction, group: str, before: int, after: int, next_position: int
) -> dict[str, Any]:
    return {
        "turn": eviction.turn,
        "step": eviction.step,
        "tokens_seen": eviction.tokens_seen,
        "slots_before": before,
        "slots_after": after,
        "group": group,
        "next_position": next_position,
        "eviction_s": eviction.eviction_s,
        "scoring_s": eviction.scoring_s,
        "attention_share": eviction.attention_share,
        "healing": eviction.healing,
        "healing_slots": eviction.healed.slots,
        "healing_bytes": eviction.healed.nbytes,
        "healing_s": eviction.healing_s,
        "ranking_bytes": eviction.ranking_bytes,
        "held_bytes": eviction.held_bytes,
    }


def _disruption(eviction: Eviction, group: str, heads: int) -> dict[str, Any]:
    """The columns of an eviction's disruption, for the layers and heads of one keep set; `heads`:
    kv heads, if keep sets differ between them."""
    if eviction.disruption is None:
        return {}
    found = eviction.disruption.of_group(group, heads)
    return disruption_values(found) | {
        "disruption_tokens_by_head": _finite_rows(found.tokens),
        "disruption_positions_by_head": _finite_rows(found.positions),
    }


def _finite_rows(values: Tensor) -> list[list[float | None]]:
    """[L, H] as lists; None where a value is not finite."""
    return [[one if math.isfinite(one) else None for one in row] for row in values.tolist()]


def disruption_values(found: Disruption | None) -> dict[str, float | None]:
    """The columns of `records.columns.Disruption`; missing where nothing was measured."""
    if found is None:
        return dict.fromkeys(DISRUPTION)
    return dict(zip(DISRUPTION, found.means(), strict=True))


def _add_heads(
    rows: list[dict[str, Any]],
    spans: dict[str, list[Spans]],
    eviction: Eviction,
    before: SlotTable,
    after: SlotTable,
) -> None:
    """Add a row for each kv head, with the numbers of its own slots."""
    for name, kept in groups(before.as_ragged(eviction.kept)):
        layer, head = (int(part) for part in name.split(":")[1:])
        own = after.row(layer, head)
        slots_before = len(before.row(layer, head))
        row = _row(eviction, name, slots_before, len(own), own.next_position)
        rows.append(row | _disruption(eviction, name, after.pad.shape[1]))
        spans["slot_spans"].append(Spans.of(kept))
        spans["token_spans"].append(Spans.of(own.token_index))
        spans["position_spans"].append(Spans.of_positions(own.position))


def integrity_values(
    found: Integrity, log: Iterable[Eviction], end: Integrity | None = None
) -> dict[str, float | None]:
    """The integrity columns; the evicted share compounds over the run's evictions.

    Args:
        found: over the reply. end: when it has ended; None: the same.
    """
    kept: float | None = 1.0
    for eviction in log:
        share = eviction.attention_share
        kept = None if kept is None or share is None else kept * (1 - share)
    at_end = asdict(end or found)
    return (
        asdict(found)
        | {"phase_distortion_weighted": at_end["phase_distortion_weighted"]}
        | {"evicted_attention_share": None if kept is None else 1 - kept}
        | {name: at_end[name.removesuffix("_at_end")] for name in INTEGRITY_AT_END}
    )


@dataclass(frozen=True)
class Spans:
    """Spans of several rows of numbers, one row after another.

    lengths: int64 [R], spans of each row. fields: int64 [sum(lengths)] each.
    """

    lengths: np.ndarray
    fields: dict[str, np.ndarray]

    @classmethod
    def of(cls, rows: Tensor) -> Spans:
        """Half-open spans of each sorted row, int64 [..., k] with k > 0."""
        lengths, starts, stops = span_edges(rows)
        return cls(lengths, {"start": starts, "stop": stops})

    @classmethod
    def of_positions(cls, rows: Tensor) -> Spans:
        """Slots start..stop hold the positions from `position` on."""
        lengths, first, last = span_edges(rows)
        slots_of_earlier_rows = np.repeat(np.arange(lengths.size) * rows.shape[-1], lengths)
        stops = np.cumsum(last - first) - slots_of_earlier_rows
        return cls(lengths, {"start": stops - (last - first), "stop": stops, "position": first})


def _list_column(name: str, parts: list[Spans]) -> pl.Series:
    """One list of structs per row, built in one go: keep sets per head have many spans."""
    if not parts:
        return pl.Series(name, [], EVICTIONS[name])
    lengths = np.concatenate([part.lengths for part in parts])
    flat = {
        field: np.concatenate([part.fields[field] for part in parts]) for field in parts[0].fields
    }
    # By Arrow, which takes offsets: grouping rows by their number takes five times as long.
    structs = pa.StructArray.from_arrays(
        [pa.array(values.astype(np.int32)) for values in flat.values()], list(flat)
    )
    offsets = pa.array(np.concatenate([[0], np.cumsum(lengths)]))
    return pl.Series(name, pa.LargeListArray.from_arrays(offsets, structs))
