"""Whether the model knows anything: without evictions it must beat guessing among its tokens."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import polars as pl

from kvfidelity.analysis.columns import table_schema
from kvfidelity.analysis.statistics import column_mean
from kvfidelity.records.grid import BASELINE, TOKENIZER

#: Share of the NLL of guessing from which a model knows nothing; language models are below a half.
GUESSING = 0.9


def baselines(turns: pl.DataFrame, dialogues: Path, options: Mapping[str, Any]) -> pl.DataFrame:
    """One row per model and data set: the baseline's NLL and that of guessing.

    Args:
        turns: the table of that name.
        dialogues: the folder of that name in the results, with each model's configuration.
        options: confidence, resamples, seed.
    """
    rows = []
    known = turns.filter(pl.col("kind") == BASELINE, pl.col("reference_nll").is_not_null())
    for (model, dataset), part in known.group_by("model", "dataset", maintain_order=True):
        found = column_mean(part, pl.col("reference_nll"), pl.col("reference_tokens"), options)
        size = _vocabulary(dialogues / str(model) / str(dataset) / TOKENIZER / "config.json")
        guessing = None if size is None else math.log(size)
        knows_nothing = (
            guessing is not None and found.mean is not None and found.mean >= GUESSING * guessing
        )
        rows.append(
            {"model": model, "dataset": dataset, "mean": found.mean, "low": found.low}
            | {"high": found.high, "n_dialogues": found.n_dialogues, "n_turns": found.n_turns}
            | {"vocabulary": size, "guessing": guessing, "knows_nothing": knows_nothing}
        )
    return pl.DataFrame(rows, table_schema("baselines"))


def know_nothing(table: pl.DataFrame) -> frozenset[tuple[str, str]]:
    """The models and data sets of `baselines` that know nothing."""
    return frozenset(table.filter("knows_nothing").select("model", "dataset").rows())


def _vocabulary(config: Path) -> int | None:
    """Tokens that the model chooses among; None if its configuration does not say."""
    if not config.is_file():
        return None
    content = json.loads(config.read_text("utf-8"))
    size = content.get("text_config", content).get("vocab_size")
    return size if isinstance(size, int) and size > 1 else None
