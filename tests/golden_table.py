"""A small table with every type that artifacts have. It needs polars only: any Python prints its
digest by `python -m tests.golden_table`."""

from __future__ import annotations

from typing import Any

import polars as pl

from kvfidelity.records.artifacts import digest

QUESTION: dict[str, Any] = {
    "question": pl.String,
    "answer": pl.String,
    "category": pl.String,
    "turns": pl.List(pl.Int32),
    "wrong": pl.List(pl.String),
}
SCHEMA: dict[str, Any] = {
    "turn": pl.Int32,
    "cache_bytes": pl.Int64,
    "n_turns": pl.UInt32,
    "after_eviction": pl.Boolean,
    "reply": pl.String,
    "excess_nll": pl.Float64,
    "reference_token_nll": pl.List(pl.Float32),
    "distractor_nll": pl.List(pl.Float64),
    "distractors": pl.List(pl.String),
    "token_spans": pl.List(pl.Struct({"start": pl.Int32, "stop": pl.Int32})),
    "questions": pl.List(pl.Struct(QUESTION)),
}
#: Numbers from 1e16 on are left out: polars 1 prints 1e16, polars 2 prints 1e+16.
ROWS: list[dict[str, Any]] = [
    {
        "turn": 0,
        "cache_bytes": 2**40,
        "n_turns": 3,
        "after_eviction": True,
        "reply": "“é” \n\t\"'\\ \u0000 \U0001f600",
        "excess_nll": 1 / 3,
        "reference_token_nll": [0.1, 1e-30, 3e9],
        "distractor_nll": [5e-324, -0.0, 1e15],
        "distractors": ["a", ""],
        "token_spans": [{"start": 0, "stop": 4}],
        "questions": [
            {"question": "?", "answer": "", "category": "x", "turns": [1], "wrong": ["y"]}
        ],
    },
    dict.fromkeys(SCHEMA),
    dict.fromkeys(SCHEMA)
    | {"excess_nll": float("nan"), "token_spans": [], "reference_token_nll": [float("inf"), None]},
]


def golden_table() -> pl.DataFrame:
    return pl.DataFrame(ROWS, SCHEMA)


if __name__ == "__main__":
    print(digest(golden_table()))
