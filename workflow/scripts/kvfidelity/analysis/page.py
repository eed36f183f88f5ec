"""The report: one self-contained page that a person reads from top to bottom."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jinja2
import polars as pl
from markupsafe import Markup

from kvfidelity.analysis.statistics import clustered_mean
from kvfidelity.grid import POSITIONS

FIGURES = ("excess", "cache_size", "retention", "by_turn")
#: Nats per token that a reader would call a difference; the headline's words change there.
MARGIN = 0.05


def render(settings: Mapping[str, Any], tables: Mapping[str, pl.DataFrame], results: Path) -> str:
    """The page as HTML.

    Args:
        settings: the whole configuration.
        tables: `turns`, `policies`, `contrasts`, `verdicts`.
        results: the folder with figures and manifests.
    """
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"signed": signed, "interval": interval, "p": p_value}
    svg = {name: (results / "figures" / f"{name}.svg").read_text("utf-8") for name in FIGURES}
    page: str = environment.get_template("page.html.j2").render(
        title=settings["title"],
        style=(Path(__file__).parent / "page.css").read_text("utf-8"),
        about=about(settings, tables["turns"], results),
        findings=findings(tables),
        headline=tables["policies"].to_dicts(),
        contrasts=tables["contrasts"].to_dicts(),
        verdicts=verdict_rows(tables["verdicts"], settings["report"]),
        missing=missing_verdicts(tables["verdicts"]),
        example=example(tables["turns"]),
        figures={name: Markup(text) for name, text in svg.items()},
        report=settings["report"],
        positions=POSITIONS,
    )
    return page


def about(settings: Mapping[str, Any], turns: pl.DataFrame, results: Path) -> list[dict[str, Any]]:
    """What was run: one entry per model and dataset."""
    entries = []
    for (model, dataset), part in turns.group_by("model", "dataset", maintain_order=True):
        manifest = results / "dialogues" / str(model) / str(dataset) / "manifest.json"
        entry = settings["models"][str(model)]
        base = part.filter(pl.col("kind") == "baseline")
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
                "tokens": base.group_by("run")
                .agg(pl.col("tokens_seen_end").max())["tokens_seen_end"]
                .to_list(),
                "replies": part["replies"][0],
                "out_of_memory": part.filter(pl.col("finish_reason") == "out_of_memory").height,
            }
        )
    return entries


def findings(tables: Mapping[str, pl.DataFrame]) -> list[dict[str, Any]]:
    """For each policy: what stale positions cost it, at the same budget and turns."""
    frame = tables["contrasts"].filter(
        pl.col("factor") == "positions", pl.col("first") == "stale", pl.col("second") == "rerotated"
    )
    corrected = tables["policies"].filter(pl.col("positions") == "rerotated")
    keys = ["model", "dataset", "policy", "threshold"]
    joined = frame.join(
        corrected.select(*keys, left="mean", left_low="low", left_high="high"), on=keys
    )
    return [row | {"verdict": _in_words(row)} for row in joined.sort("mean").to_dicts()]


def verdict_rows(verdicts: pl.DataFrame, options: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Mean verdict per judge and cell with its interval; missing verdicts are counted beside."""
    if verdicts.is_empty():
        return []
    rows = []
    asked = verdicts.filter(pl.col("status") != "no_reply")
    keys = ["judge", "model", "dataset", "policy", "positions", "threshold"]
    for key, part in asked.group_by(keys):
        given = part.filter(pl.col("status") == "ok")
        row = dict(zip(keys, key, strict=True)) | {"missing": part.height - given.height}
        if given.height:
            estimate = clustered_mean(
                given["score"].cast(pl.Float64).to_numpy(),
                given["score"].cast(pl.Float64).to_numpy() * 0 + 1,
                given["dialogue"].to_numpy().astype(str),
                confidence=options["confidence"],
                resamples=options["resamples"],
                seed=options["seed"],
            )
            row |= {"mean": estimate.mean, "low": estimate.low, "high": estimate.high}
            row |= {"n": given.height, "n_dialogues": estimate.n_dialogues}
        else:
            row |= {"mean": None, "low": None, "high": None, "n": 0, "n_dialogues": 0}
        rows.append(row)
    return sorted(rows, key=lambda row: [str(row[key]) for key in keys])


def missing_verdicts(verdicts: pl.DataFrame) -> list[dict[str, Any]]:
    """How many verdicts are missing, by judge and reason; turns without a reply are not asked."""
    if verdicts.is_empty():
        return []
    lost = verdicts.filter(~pl.col("status").is_in(["ok", "no_reply"]))
    return lost.group_by("judge", "status").len().sort("judge", "status").to_dicts()


def example(turns: pl.DataFrame) -> list[dict[str, Any]]:
    """The last turn of the first dialogue: what each cell replied."""
    spoken = turns.filter(
        pl.col("reply").is_not_null(),
        pl.col("dialogue") == pl.col("dialogue").min(),
        pl.col("model") == pl.col("model").min(),
    )
    last = spoken.filter(pl.col("turn") == pl.col("turn").max())
    columns = ("policy", "positions", "threshold", "prompt", "reply", "reference", "reply_nll_full")
    return last.select(columns).sort("policy", "positions").to_dicts()


def signed(value: float | None, digits: int = 3) -> str:
    """ "+4.660", with a true minus sign; a dash for a missing value."""
    if value is None:
        return "\N{EN DASH}"
    rounded = f"{value:+.{digits}f}"
    if float(rounded) == 0:
        return f"{0:.{digits}f}"
    return rounded.replace("-", "\N{MINUS SIGN}")


def interval(row: Mapping[str, Any], digits: int = 3) -> str:
    """ "[+4.1, +5.2]", or why there is none."""
    if row["low"] is None:
        return "no interval from one dialogue"
    return f"[{signed(row['low'], digits)}, {signed(row['high'], digits)}]"


def p_value(value: float | None) -> str:
    """Three digits, or "< 0.001"."""
    if value is None:
        return "\N{EN DASH}"
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def _in_words(row: Mapping[str, Any]) -> str:
    if row["low"] is None:
        return "undecided"
    if row["low"] > MARGIN:
        return "costs"
    if row["high"] < -MARGIN:
        return "helps"
    return "none" if row["low"] >= -MARGIN and row["high"] <= MARGIN else "undecided"
