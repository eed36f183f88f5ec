"""A baseline as tensors and text, and back, bit for bit.

What the rest implies is not written: nothing was evicted, so token i is at position i in slot i;
the cache's scores and recent queries are those of the last checkpoint; rotated keys are computed
from the keys again.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, fields
from typing import Any

import torch
from torch import Tensor

from kvfidelity.cache.managed import ManagedCache
from kvfidelity.cache.positions import PositionMode
from kvfidelity.cache.recent_queries import RecentQueries
from kvfidelity.cache.scores import AttentionScores, ScoreHistory
from kvfidelity.decoding.engine import Engine
from kvfidelity.decoding.sequence import Reply
from kvfidelity.generation.baseline_run import BaselineRun, Checkpoint
from kvfidelity.generation.turns import TurnOutcome
from kvfidelity.metrics.positions import Integrity
from kvfidelity.prefix.tensor_file import TensorFile

#: Fields of an outcome that are not in the JSON: tensors, and what a baseline does not have.
TENSOR_FIELDS = ("predicted", "reference_nll", "kl_baseline", "evictions")


def to_tensors(run: BaselineRun) -> tuple[dict[str, Tensor], str]:
    """Tensors by name, without copying them, and everything else as JSON.

    The run must be finished: `run.end` is set.
    """
    assert run.end is not None
    cache = run.cache
    tensors: dict[str, Tensor] = {}
    for number, layer in enumerate(cache.layers):
        tensors |= {f"keys.{number}": layer.live_keys, f"values.{number}": layer.live_values}
    checkpoints = [*run.starts, run.end]
    for number, checkpoint in enumerate(checkpoints):
        tensors |= _checkpoint_tensors(checkpoint, f"checkpoint.{number}")
    for turn, outcome in enumerate(run.outcomes):
        tensors[f"predicted.{turn}"] = outcome.predicted
        if outcome.reference_nll is not None:
            tensors[f"reference_nll.{turn}"] = outcome.reference_nll
    header = {
        "query_window": cache.query_window,
        "scaling": cache.scaling,
        "checkpoints": [_checkpoint_fields(checkpoint) for checkpoint in checkpoints],
        "prompts": run.prompts,
        "outcomes": [_outcome_fields(outcome) for outcome in run.outcomes],
    }
    return tensors, json.dumps(header)


def from_tensors(stored: TensorFile, engine: Engine) -> BaselineRun:
    """The run that `to_tensors` converted, on the engine's device.

    Raises:
        ValueError, LookupError, TypeError: the file does not hold such a run.
        RuntimeError: memory ran out.
    """
    header, device = json.loads(stored.note), engine.device
    cache = engine.new_cache(PositionMode.ORIGINAL, query_window=header["query_window"])
    for number in range(len(cache.layers)):
        keys, values = (stored[f"{name}.{number}"].to(device) for name in ("keys", "values"))
        cache.update(keys[None], values[None], number)
    *starts, end = [
        _checkpoint(stored, f"checkpoint.{number}", entry, cache)
        for number, entry in enumerate(header["checkpoints"])
    ]
    cache.scores = end.scores.fork() if end.scores is not None else None
    cache.recent_queries = end.recent_queries.fork() if end.recent_queries is not None else None
    cache.scaling = header["scaling"]
    outcomes = [
        _outcome(stored, turn, entry, device) for turn, entry in enumerate(header["outcomes"])
    ]
    return BaselineRun(cache, starts, header["prompts"], outcomes, end)


def _checkpoint_fields(checkpoint: Checkpoint) -> dict[str, Any]:
    """`scores`: whether there are scores yet; None if they are not collected."""
    return {
        "slots": checkpoint.slots,
        "step": checkpoint.step,
        "scores": None if checkpoint.scores is None else checkpoint.scores.available,
    }


def _checkpoint_tensors(checkpoint: Checkpoint, name: str) -> dict[str, Tensor]:
    recent = checkpoint.recent_queries
    queries = recent.latest() if recent is not None else None
    found = {} if queries is None else {f"{name}.queries": queries}
    if checkpoint.scores is not None and checkpoint.scores.available:
        found |= {f"{name}.{history}": checkpoint.scores.rows(history) for history in ScoreHistory}
    return found


def _checkpoint(
    stored: TensorFile, name: str, entry: Mapping[str, Any], cache: ManagedCache
) -> Checkpoint:
    device, layers, slots = cache.device, len(cache.layers), entry["slots"]
    recent, scores = None, None
    if cache.query_window and slots:  # nothing was evicted: as many tokens as slots
        queries = stored[f"{name}.queries"].to(device)
        recent = RecentQueries.from_latest(queries, cache.query_window, slots)
    elif cache.query_window:
        recent = RecentQueries(layers, cache.query_window)
    if entry["scores"]:
        latest, accumulated = (stored[f"{name}.{history}"].to(device) for history in ScoreHistory)
        scores = AttentionScores.from_rows(latest, accumulated)
    elif entry["scores"] is not None:
        scores = AttentionScores(layers)
    return Checkpoint(slots, entry["step"], scores, recent)


def _outcome_fields(outcome: TurnOutcome) -> dict[str, Any]:
    assert not outcome.evictions
    plain = {
        f.name: getattr(outcome, f.name) for f in fields(outcome) if f.name not in TENSOR_FIELDS
    }
    return plain | {
        "reply": None if outcome.reply is None else asdict(outcome.reply),
        "integrity": asdict(outcome.integrity),
        "integrity_at_end": asdict(outcome.integrity_at_end),
        "has_reference_nll": outcome.reference_nll is not None,
    }


def _outcome(
    stored: TensorFile, turn: int, entry: dict[str, Any], device: torch.device
) -> TurnOutcome:
    reply = entry["reply"]
    if reply is not None:
        reply = Reply(**reply | {"ids": tuple(reply["ids"]), "nll": tuple(reply["nll"])})
    parsed = {
        "prompt": tuple(entry["prompt"]),
        "fed": tuple(entry["fed"]),
        "reply": reply,
        "integrity": Integrity(**entry["integrity"]),
        "integrity_at_end": Integrity(**entry["integrity_at_end"]),
        "predicted": stored[f"predicted.{turn}"].to(device),
        "reference_nll": stored[f"reference_nll.{turn}"]
        if entry.pop("has_reference_nll")
        else None,
        "kl_baseline": None,
        "evictions": (),
    }
    return TurnOutcome(**entry | parsed)
