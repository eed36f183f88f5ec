"""What is recorded of a run: one row per turn, one per eviction, one per question asked.

`python -m kvfidelity.records.columns > src/kvfidelity/records/records.yaml` writes the columns
down.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict
from typing import Any

import numpy as np
import polars as pl

from kvfidelity.cache.eviction_log import Eviction, advance, groups, span_edges
from kvfidelity.cache.positions import PositionMode
from kvfidelity.cache.slots import SlotTable
from kvfidelity.metrics.positions import Integrity
from kvfidelity.records.schema_version import SCHEMA_VERSION

SPANS = pl.List(pl.Struct({"start": pl.Int32, "stop": pl.Int32}))
POSITION_SPANS = pl.List(pl.Struct({"start": pl.Int32, "stop": pl.Int32, "position": pl.Int32}))

INTEGRITY = {
    "retained_share": pl.Float64,
    "kept_spans": pl.Float64,
    "future_share": pl.Float64,
    "collisions": pl.Float64,
    "order_inversions": pl.Float64,
    "out_of_window_share": pl.Float64,
    "mean_offset_error": pl.Float64,
    "phase_distortion": pl.Float64,
    "phase_distortion_weighted": pl.Float64,
    "sinks_kept": pl.Float64,
    "evicted_attention_share": pl.Float64,
}

TURNS: dict[str, Any] = {
    "model": pl.String,
    "model_revision": pl.String,
    "dataset": pl.String,
    "dialogue": pl.String,
    "dialogue_id": pl.String,
    "policy": pl.String,
    "kind": pl.String,
    "parameters": pl.String,
    "positions": pl.String,
    "threshold": pl.String,
    "trigger": pl.String,
    "threshold_tokens": pl.Int32,
    "target_tokens": pl.Int32,
    "seed": pl.Int32,
    "replies": pl.String,
    "turn": pl.Int32,
    "turns_total": pl.Int32,
    "shared_prefix": pl.Boolean,
    "scores_collected": pl.Boolean,
    "prompt_tokens": pl.Int32,
    "reply_tokens": pl.Int32,
    "tokens_seen_start": pl.Int32,
    "tokens_seen_end": pl.Int32,
    "slots_start": pl.Int32,
    "slots_after_prefill": pl.Int32,
    "slots_after_eviction": pl.Int32,
    "slots_end": pl.Int32,
    "slots_peak": pl.Int32,
    "next_position": pl.Int32,
    "cache_bytes_start": pl.Int64,
    "cache_bytes_after_prefill": pl.Int64,
    "cache_bytes_after_eviction": pl.Int64,
    "cache_bytes_end": pl.Int64,
    "cache_bytes_peak": pl.Int64,
    "token_bytes": pl.Int64,
    "peak_device_bytes": pl.Int64,
    "evictions": pl.Int32,
    "evicted_tokens": pl.Int32,
    # Seconds. eviction_s, scoring_s: of all the turn's evictions, moving the survivors and ranking
    # the slots. prefill_s: feeding the prompt, without any eviction. ttft_s: from the turn's start
    # to the first token, with the evictions before it. tpot_s: per further token, with the
    # evictions between them.
    "eviction_s": pl.Float64,
    "scoring_s": pl.Float64,
    "prefill_s": pl.Float64,
    "ttft_s": pl.Float64,
    "tpot_s": pl.Float64,
    "decode_tokens_per_s": pl.Float64,
    "concurrency": pl.Int32,
    "batch_tokens_per_s": pl.Float64,
    "prompt": pl.String,
    "reply": pl.String,
    "reference": pl.String,
    "finish_reason": pl.String,
    "reply_token_count": pl.Int32,
    "reference_nll": pl.Float64,
    "reference_tokens": pl.Int32,
    "reference_token_nll": pl.List(pl.Float32),
    "kl_baseline": pl.Float64,
    "reply_nll": pl.Float64,
    "reply_nll_baseline": pl.Float64,
    **INTEGRITY,
    "trained_window": pl.Int32,
    "device": pl.String,
    "dtype": pl.String,
}

EVICTIONS: dict[str, Any] = {
    "turn": pl.Int32,
    "step": pl.Int32,
    "tokens_seen": pl.Int32,
    "slots_before": pl.Int32,
    "slots_after": pl.Int32,
    "group": pl.String,
    "slot_spans": SPANS,
    "token_spans": SPANS,
    "position_spans": POSITION_SPANS,
    "next_position": pl.Int32,
    "eviction_s": pl.Float64,
    "scoring_s": pl.Float64,
    "attention_share": pl.Float64,
}

RECALL: dict[str, Any] = {
    "model": pl.String,
    "dataset": pl.String,
    "dialogue": pl.String,
    "dialogue_id": pl.String,
    "policy": pl.String,
    "kind": pl.String,
    "positions": pl.String,
    "threshold": pl.String,
    "target_tokens": pl.Int32,
    "seed": pl.Int32,
    "replies": pl.String,
    "turn": pl.Int32,
    "probe": pl.Int32,
    "origin": pl.String,
    "depth": pl.String,
    "subject": pl.String,
    "evidence_turn": pl.Int32,
    "evidence_retained_share": pl.Float64,
    "slots": pl.Int32,
    "evictions": pl.Int32,
    "question": pl.String,
    "answer": pl.String,
    "distractors": pl.List(pl.String),
    "answer_nll": pl.Float64,
    "distractor_nll": pl.List(pl.Float64),
    "margin": pl.Float64,
    "chosen": pl.Boolean,
    "reply": pl.String,
    "answered": pl.Boolean,
}


def recall_frame(rows: Iterable[Mapping[str, Any]]) -> pl.DataFrame:
    """One row per question asked; a missing key is an error."""
    return pl.DataFrame([[row[name] for name in RECALL] for row in rows], RECALL, orient="row")


def turns_frame(rows: Iterable[Mapping[str, Any]]) -> pl.DataFrame:
    """Turn rows as a frame; a missing value must be given as None, a missing key is an error."""
    return pl.DataFrame([[row[name] for name in TURNS] for row in rows], TURNS, orient="row")


def evictions_frame(log: Iterable[Eviction], mode: PositionMode) -> pl.DataFrame:
    """The eviction log as a frame: one row per eviction and keep set, in run-length form."""
    slots = SlotTable(mode)
    rows = []
    spans: dict[str, list[dict[str, np.ndarray]]] = {
        "slot_spans": [],
        "token_spans": [],
        "position_spans": [],
    }
    for eviction in log:
        advance(slots, eviction)
        token = dict(groups(slots.token_index))
        position = dict(groups(slots.position))
        for name, kept in groups(eviction.kept):
            rows.append(
                {
                    "turn": eviction.turn,
                    "step": eviction.step,
                    "tokens_seen": eviction.tokens_seen,
                    "slots_before": eviction.slots_before,
                    "slots_after": eviction.slots_after,
                    "group": name,
                    "next_position": slots.next_position,
                    "eviction_s": eviction.eviction_s,
                    "scoring_s": eviction.scoring_s,
                    "attention_share": eviction.attention_share,
                }
            )
            spans["slot_spans"].append(_spans(kept))
            spans["token_spans"].append(_spans(token.get(name, token.get("shared"))))
            spans["position_spans"].append(
                _position_spans(position.get(name, position.get("shared")))
            )
    schema = {name: kind for name, kind in EVICTIONS.items() if name not in spans}
    columns = [_list_column(name, parts) for name, parts in spans.items()]
    return pl.DataFrame(rows, schema).with_columns(columns).select(list(EVICTIONS))


def integrity_values(found: Integrity, log: Iterable[Eviction]) -> dict[str, float | None]:
    """The integrity columns; the evicted share compounds over the run's evictions."""
    kept: float | None = 1.0
    for eviction in log:
        share = eviction.attention_share
        kept = None if kept is None or share is None else kept * (1 - share)
    return asdict(found) | {"evicted_attention_share": None if kept is None else 1 - kept}


def _spans(numbers: Any) -> dict[str, np.ndarray]:
    starts, stops = span_edges(numbers)
    return {"start": starts, "stop": stops}


def _position_spans(position: Any) -> dict[str, np.ndarray]:
    """Slots start..stop hold the positions from `position` on."""
    first, last = span_edges(position)
    stops = np.cumsum(last - first)
    return {"start": stops - (last - first), "stop": stops, "position": first}


def _list_column(name: str, parts: list[dict[str, np.ndarray]]) -> pl.Series:
    """One list of structs per part, made at once: keep sets per head have many runs."""
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


def record_schemas() -> str:
    """Columns and types of all tables with the schema version, as YAML."""
    tables = {"turns": TURNS, "evictions": EVICTIONS, "recall": RECALL}
    lines = ["# Made by `python -m kvfidelity.records.columns`; units are part of a column's name."]
    lines.append(f"schema_version: {SCHEMA_VERSION}")
    for name, columns in tables.items():
        lines.append(f"{name}:")
        lines += [f'  {column}: "{kind}"' for column, kind in pl.Schema(columns).items()]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    print(record_schemas(), end="")
