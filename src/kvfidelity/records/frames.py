"""Frames of what is recorded of a run: one row per turn, per eviction and per recall question."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict
from typing import Any

import numpy as np
import polars as pl

from kvfidelity.cache.eviction_log import Eviction, groups, span_edges
from kvfidelity.cache.positions import PositionMode
from kvfidelity.cache.slots import SlotTable
from kvfidelity.metrics.positions import Integrity
from kvfidelity.records.columns import EVICTIONS, INTEGRITY_AT_END, RECALL, TURNS


def recall_frame(rows: Iterable[Mapping[str, Any]]) -> pl.DataFrame:
    """One row per recall question, with the columns of `RECALL`.

    Raises:
        KeyError: a row lacks a column; a missing value must be given as None.
    """
    return pl.DataFrame([[row[name] for name in RECALL] for row in rows], RECALL, orient="row")


def turns_frame(rows: Iterable[Mapping[str, Any]]) -> pl.DataFrame:
    """One row per turn, with the columns of `TURNS`.

    Raises:
        KeyError: a row lacks a column; a missing value must be given as None.
    """
    return pl.DataFrame([[row[name] for name in TURNS] for row in rows], TURNS, orient="row")


def evictions_frame(log: Iterable[Eviction], mode: PositionMode) -> pl.DataFrame:
    """The eviction log, with the columns of `EVICTIONS`: one row per eviction and keep set."""
    slots = SlotTable(mode)
    rows: list[dict[str, Any]] = []
    spans: dict[str, list[dict[str, np.ndarray]]] = {
        "slot_spans": [],
        "token_spans": [],
        "position_spans": [],
    }
    for eviction in log:
        slots.append(eviction.tokens_seen - slots.tokens_seen)
        before = slots.fork()
        slots.keep(eviction.kept)
        if slots.is_ragged:
            _add_heads(rows, spans, eviction, before, slots)
            continue
        token = dict(groups(slots.token_index))
        position = dict(groups(slots.position))
        for name, kept in groups(eviction.kept):
            sizes = (eviction.slots_before, eviction.slots_after)
            rows.append(_row(eviction, name, *sizes, slots.next_position))
            spans["slot_spans"].append(_spans(kept))
            spans["token_spans"].append(_spans(token.get(name, token.get("shared"))))
            spans["position_spans"].append(
                _position_spans(position.get(name, position.get("shared")))
            )
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
        "ranking_bytes": eviction.ranking_bytes,
        "held_bytes": eviction.held_bytes,
    }


def _add_heads(
    rows: list[dict[str, Any]],
    spans: dict[str, list[dict[str, np.ndarray]]],
    eviction: Eviction,
    before: SlotTable,
    after: SlotTable,
) -> None:
    """Add a row for each kv head, with the numbers of its own slots."""
    for name, kept in groups(before.as_ragged(eviction.kept)):
        layer, head = (int(part) for part in name.split(":")[1:])
        own = after.row(layer, head)
        slots_before = len(before.row(layer, head))
        rows.append(_row(eviction, name, slots_before, len(own), own.next_position))
        spans["slot_spans"].append(_spans(kept))
        spans["token_spans"].append(_spans(own.token_index[0, 0]))
        spans["position_spans"].append(_position_spans(own.position[0, 0]))


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


def _spans(numbers: Any) -> dict[str, np.ndarray]:
    starts, stops = span_edges(numbers)
    return {"start": starts, "stop": stops}


def _position_spans(position: Any) -> dict[str, np.ndarray]:
    """Slots start..stop hold the positions from `position` on."""
    first, last = span_edges(position)
    stops = np.cumsum(last - first)
    return {"start": stops - (last - first), "stop": stops, "position": first}


def _list_column(name: str, parts: list[dict[str, np.ndarray]]) -> pl.Series:
    """One list of structs per part, built in one go: keep sets per head have many spans."""
    if not parts:
        return pl.Series(name, [], EVICTIONS[name])
    fields = list(parts[0])
    lengths = [part[fields[0]].size for part in parts]
    flat = pl.DataFrame(
        {field: np.concatenate([part[field] for part in parts]) for field in fields}
    )
    rows = flat.select(
        pl.struct(pl.col(fields).cast(pl.Int32)).alias(name),
        row=pl.Series(np.repeat(np.arange(len(parts)), lengths)),
    )
    lists = rows.group_by("row", maintain_order=True).agg(name)
    whole = pl.DataFrame({"row": np.arange(len(parts))}).join(
        lists, "row", "left", maintain_order="left"
    )
    return whole[name].fill_null([])
