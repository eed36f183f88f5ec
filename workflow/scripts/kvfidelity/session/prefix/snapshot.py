"""A never evicted run as tensors and text, and back, bit for bit.

What is not written is what the rest implies: a cache that was never evicted from holds token i at
position i in slot i, its scores and query tails are those of the last mark, and the rotated keys of
a CPU are the keys rotated anew.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, fields
from typing import Any

import torch
from torch import Tensor

from kvfidelity.cache.ledger import PositionMode
from kvfidelity.cache.scores import History, ScoreBook
from kvfidelity.metrics.integrity import Integrity
from kvfidelity.session.engine import Engine
from kvfidelity.session.lane import Reply
from kvfidelity.session.prefix.full import FullRun, Mark
from kvfidelity.session.prefix.tensorfile import TensorFile
from kvfidelity.session.turns import TurnOutcome

#: Fields of an outcome that are not text: tensors, and evictions, of which there are none.
APART = ("predicted", "reference_nll", "evictions")


def taken_apart(run: FullRun) -> tuple[dict[str, Tensor], str]:
    """Tensors by name, views of the run's own where they can be, and the rest as JSON.

    The run must have come to its end.
    """
    assert run.end is not None
    cache = run.cache
    tensors: dict[str, Tensor] = {}
    for number, layer in enumerate(cache.layers):
        tensors |= {f"keys.{number}": layer.live_keys, f"values.{number}": layer.live_values}
    marks = [*run.starts, run.end]
    for number, mark in enumerate(marks):
        tensors |= _tensors_of_mark(mark, f"mark.{number}")
    for turn, outcome in enumerate(run.outcomes):
        tensors[f"predicted.{turn}"] = outcome.predicted
        if outcome.reference_nll is not None:
            tensors[f"reference_nll.{turn}"] = outcome.reference_nll
    about = {
        "query_tail": cache.query_tail,
        "scaling": cache.scaling,
        "marks": [_about_mark(mark) for mark in marks],
        "prompts": run.prompts,
        "outcomes": [_about_outcome(outcome) for outcome in run.outcomes],
    }
    return tensors, json.dumps(about)


def put_together(stored: TensorFile, engine: Engine) -> FullRun:
    """The run that was taken apart, on the engine's device.

    Raises:
        ValueError, LookupError, TypeError: the file holds something else.
        RuntimeError: memory ran out.
    """
    about, device = json.loads(stored.note), engine.device
    cache = engine.new_cache(PositionMode.ORIGINAL, query_tail=about["query_tail"])
    for number in range(len(cache.layers)):
        keys, values = (stored[f"{name}.{number}"].to(device) for name in ("keys", "values"))
        cache.update(keys[None], values[None], number)
    *starts, end = [
        _mark(stored, f"mark.{number}", entry, device)
        for number, entry in enumerate(about["marks"])
    ]
    cache.scores = end.book.fork() if end.book is not None else None
    cache.tails, cache.scaling = list(end.tails), about["scaling"]
    outcomes = [
        _outcome(stored, turn, entry, device) for turn, entry in enumerate(about["outcomes"])
    ]
    return FullRun(cache, starts, about["prompts"], outcomes, end)


def _about_mark(mark: Mark) -> dict[str, Any]:
    """`book`: whether it holds scores; None: there is no book."""
    return {
        "slots": mark.slots,
        "step": mark.step,
        "book": None if mark.book is None else mark.book.available,
        "tails": [tail is not None for tail in mark.tails],
    }


def _tensors_of_mark(mark: Mark, name: str) -> dict[str, Tensor]:
    found = {
        f"{name}.tail.{layer}": tail for layer, tail in enumerate(mark.tails) if tail is not None
    }
    if mark.book is not None and mark.book.available:
        found |= {f"{name}.{history}": mark.book.of(history) for history in History}
    return found


def _mark(stored: TensorFile, name: str, entry: Mapping[str, Any], device: torch.device) -> Mark:
    tails = tuple(
        stored[f"{name}.tail.{layer}"].to(device) if there else None
        for layer, there in enumerate(entry["tails"])
    )
    book = None
    if entry["book"]:
        latest, accumulated = (stored[f"{name}.{history}"].to(device) for history in History)
        book = ScoreBook.of_rows(latest, accumulated)
    elif entry["book"] is not None:
        book = ScoreBook(len(tails))
    return Mark(entry["slots"], entry["step"], book, tails)


def _about_outcome(outcome: TurnOutcome) -> dict[str, Any]:
    assert not outcome.evictions
    plain = {f.name: getattr(outcome, f.name) for f in fields(outcome) if f.name not in APART}
    return plain | {
        "reply": None if outcome.reply is None else asdict(outcome.reply),
        "integrity": asdict(outcome.integrity),
        "referenced": outcome.reference_nll is not None,
    }


def _outcome(
    stored: TensorFile, turn: int, entry: dict[str, Any], device: torch.device
) -> TurnOutcome:
    reply = entry["reply"]
    if reply is not None:
        reply = Reply(**reply | {"ids": tuple(reply["ids"]), "nll": tuple(reply["nll"])})
    given = {
        "fed": tuple(entry["fed"]),
        "reply": reply,
        "integrity": Integrity(**entry["integrity"]),
        "predicted": stored[f"predicted.{turn}"].to(device),
        "reference_nll": stored[f"reference_nll.{turn}"] if entry.pop("referenced") else None,
        "evictions": (),
    }
    return TurnOutcome(**entry | given)
