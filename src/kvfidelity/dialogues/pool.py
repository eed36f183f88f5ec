"""The selected dialogues of one dataset for one model: a Parquet table, one row per dialogue."""

from __future__ import annotations

import functools
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl

from kvfidelity.errors import UserError
from kvfidelity.records.artifacts import read_parquet

KIND = "dialogues"
TURN = pl.Struct({"user": pl.String, "assistant": pl.String})
QUESTION = pl.Struct(
    {
        "question": pl.String,
        "answer": pl.String,
        "category": pl.String,
        "turns": pl.List(pl.Int32),
        "wrong": pl.List(pl.String),
    }
)
SCHEMA: dict[str, Any] = {
    "ordinal": pl.String,
    "dialogue_id": pl.String,
    "turns": pl.List(TURN),
    "n_turns": pl.Int32,
    "n_tokens": pl.Int32,
    "language": pl.String,
    "source": pl.String,
    "questions": pl.List(QUESTION),
}


@dataclass(frozen=True, slots=True)
class Turn:
    """A user's message and the reply that the dataset has for it."""

    user: str
    assistant: str


@dataclass(frozen=True)
class Question:
    """A question about a dialogue, from its data set.

    answer: "" if the dialogue does not hold one. turns: turns that hold it, if the data set names
    them. wrong: answers that the data set itself calls wrong.
    """

    question: str
    answer: str
    category: str
    turns: tuple[int, ...] = ()
    wrong: tuple[str, ...] = ()


@dataclass(frozen=True)
class Dialogue:
    """A conversation; `ordinal` is its rank in the pool, "000" the first."""

    ordinal: str
    dialogue_id: str
    turns: tuple[Turn, ...]
    questions: tuple[Question, ...] = ()


def pool_frame(rows: Iterable[dict[str, object]]) -> pl.DataFrame:
    """The pool table from rows without `ordinal`, in rank order."""
    numbered = [{"ordinal": f"{rank:03d}"} | row for rank, row in enumerate(rows)]
    return pl.DataFrame(numbered, SCHEMA)


@functools.lru_cache(maxsize=4)
def _pool_table(pool: Path, state: object) -> pl.DataFrame:
    """The table of a pool; read once, for each run asks for a dialogue of it.

    Args:
        state: of the file, so that one that was replaced is read again.
    """
    return read_parquet(pool, kind=KIND)


def read_dialogue(pool: Path, ordinal: str) -> Dialogue:
    """One dialogue of a pool.

    Raises:
        UserError: the pool is missing or damaged, or holds no such dialogue.
    """
    status = pool.stat() if pool.is_file() else None
    frame = _pool_table(pool, status and (status.st_mtime_ns, status.st_size, status.st_ino))
    found = frame.filter(pl.col("ordinal") == ordinal)
    if found.is_empty():
        raise UserError(
            f"{pool} has {frame.height} dialogues, but no number {ordinal}: lower the "
            "dataset's `count`, or relax its `select` (manifest.json next to it counts what was "
            "dropped, and why)"
        )
    row = found.row(0, named=True)
    turns = tuple(Turn(turn["user"], turn["assistant"]) for turn in row["turns"])
    questions = tuple(
        Question(
            item["question"],
            item["answer"],
            item["category"],
            tuple(item["turns"]),
            tuple(item["wrong"]),
        )
        for item in row["questions"]
    )
    return Dialogue(row["ordinal"], row["dialogue_id"], turns, questions)
