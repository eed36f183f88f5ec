"""What was run: models, dialogues, thresholds, policies, and how much of it counts."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import polars as pl

from kvfidelity.records.grid import BASELINE, MANIFEST

#: The columns of `turns` that are used here.
COLUMNS = (
    *("run", "model", "dataset", "dialogue", "policy", "positions", "seed", "kind", "parameters"),
    *("model_revision", "dtype", "device", "trained_window", "token_bytes", "after_eviction"),
    *("tokens_seen_end", "reference_tokens", "reply_token_count", "replies", "finish_reason"),
    *("threshold", "trigger", "threshold_tokens", "target_tokens"),
)


def run_summaries(
    settings: Mapping[str, Any], tables: Mapping[str, pl.DataFrame], results: Path
) -> list[dict[str, Any]]:
    """One entry per model and dataset.

    Args:
        settings: what `rule_params.report_settings` chooses of the configuration.
        tables: of them `turns`, `baselines` and `recall`.
        results: the folder with the dialogues' manifests.
    """
    entries = []
    turns = tables["turns"]
    for (model, dataset), part in turns.group_by("model", "dataset", maintain_order=True):
        manifest = results / "dialogues" / str(model) / str(dataset) / MANIFEST
        entry = settings["models"][str(model)]
        base = part.filter(kind=BASELINE)
        evicted = part.filter(pl.col("kind") != BASELINE, "after_eviction")
        baseline = tables["baselines"].filter(model=model, dataset=dataset).to_dicts()
        asked = tables["recall"].filter(model=model, dataset=dataset)
        entries.append(
            {
                "model": model,
                "label": entry.get("label"),
                "revision": part["model_revision"][0],
                "licence": entry.get("licence", "not stated in the config"),
                "dtype": part["dtype"].drop_nulls().first(),
                "device": part["device"].drop_nulls().first(),
                "window": part["trained_window"].drop_nulls().first(),
                "token_bytes": part["token_bytes"].drop_nulls().first(),
                "dataset": dataset,
                "dataset_licence": settings["datasets"][str(dataset)].get("licence", "not stated"),
                "manifest": json.loads(manifest.read_text("utf-8")),
                "dialogues": part["dialogue"].n_unique(),
                "runs": part["run"].n_unique(),
                "turns": part.height,
                "turns_after_eviction": evicted.height,
                "baseline": baseline[0] if baseline else None,
                "needles": _needles(asked),
                "tokens": base.group_by("run")
                .agg(pl.col("tokens_seen_end").max())["tokens_seen_end"]
                .to_list(),
                "reference_tokens": base["reference_tokens"].drop_nulls().to_list(),
                "own_tokens": part["reply_token_count"].drop_nulls().to_list(),
                "replies": part["replies"][0],
                "seeds": part["seed"].unique().sort().to_list(),
                "out_of_memory": part.filter(pl.col("finish_reason") == "out_of_memory").height,
                "thresholds": thresholds(part),
            }
        )
    return entries


def _needles(recall: pl.DataFrame) -> int:
    """Needles of a dialogue, the most of any."""
    needles = recall.filter(kind=BASELINE, origin="needle")
    counts = needles.group_by("dialogue", "seed", "turn").len()["len"]
    return int(counts.max() or 0)  # type: ignore[arg-type]


def thresholds(turns: pl.DataFrame) -> list[dict[str, Any]]:
    """Each threshold of a model's runs: size and target in tokens and bytes, and its trigger."""
    names = ("threshold", "trigger", "threshold_tokens", "target_tokens")
    found = (
        turns.filter(pl.col("kind") != BASELINE)
        .group_by(names, maintain_order=True)
        .agg(pl.col("token_bytes").max())
        .sort("threshold")
    )
    size = pl.col("token_bytes")
    return found.with_columns(
        threshold_bytes=pl.col("threshold_tokens") * size,
        target_bytes=pl.col("target_tokens") * size,
    ).to_dicts()


def policies_run(turns: pl.DataFrame, kinds: Mapping[str, str]) -> list[dict[str, Any]]:
    """Each policy of the run with its kind, what that kind does, and its parameters.

    Args:
        turns: the table of that name.
        kinds: what each built-in kind of policy does; a kind of the user's own may be missing.
    """
    named = turns.select("policy", "kind", "parameters").unique().sort("policy", "parameters")
    return [
        {
            "policy": row["policy"],
            "kind": row["kind"],
            "description": kinds.get(row["kind"], ""),
            "parameters": json.loads(row["parameters"] or "{}"),
        }
        for row in named.to_dicts()
    ]
