"""The report: one self-contained page that a person reads from top to bottom."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jinja2
import polars as pl
from markupsafe import Markup

from kvfidelity.analysis.attribution import attribute_losses
from kvfidelity.analysis.recall import recall_statements
from kvfidelity.analysis.reliability import rows_by_measure
from kvfidelity.analysis.statistics import clustered_mean
from kvfidelity.analysis.tables import CELL
from kvfidelity.analysis.window import change_at_edge
from kvfidelity.records.grid import POSITIONS
from kvfidelity.report.figure_registry import CHARTS
from kvfidelity.report.formatting import (
    decimal,
    extent,
    interval,
    p_value,
    percent,
    percent_range,
    rounded,
    signed,
)
from kvfidelity.report.paper_tables import cell_name, claim_question
from kvfidelity.report.transcripts import build_transcripts, transcripts_summary

FIGURES = tuple(CHARTS)
TABLES = (
    "turns",
    "evictions",
    "verdicts",
    "policies",
    "contrasts",
    "predictors",
    "window",
    "environments",
    "recall_by_depth",
    "claims",
    "reliability",
    "comparisons",
    "costs",
    "not_finite",
)


def render(settings: Mapping[str, Any], tables: Mapping[str, pl.DataFrame], results: Path) -> str:
    """The page as HTML.

    Args:
        settings: what `specs.report_settings` chooses of the configuration.
        tables: those named in TABLES, and `jobs`.
        results: the folder with figures, manifests, tokenizers and artifacts.
    """
    here = Path(__file__).parent / "templates"
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(here),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "signed": signed,
        "interval": interval,
        "p": p_value,
        "claim_question": claim_question,
    }
    environment.filters |= {
        "percent": percent,
        "span": percent_range,
        "extent": extent,
        "decimal": decimal,
    }
    environment.filters |= {"rounded": rounded}
    environment.globals |= {"cell_name": cell_name, "cell_key": cell_key}
    svg = {
        name: inline_svg((results / "figures" / f"{name}.svg").read_text("utf-8"))
        for name in FIGURES
    }
    turns = tables["turns"]
    cells = build_transcripts(turns, tables["evictions"], results, settings["session"])
    window = change_at_edge(tables["window"])
    page: str = environment.get_template("page.html.j2").render(
        title=settings["title"],
        style=Markup((here / "page.css").read_text("utf-8")),
        script=Markup((here / "page.js").read_text("utf-8")),
        cells=Markup(as_json(cells)),
        transcripts_summary=transcripts_summary(cells),
        setups=run_summaries(settings, turns, results),
        environments=tables["environments"].to_dicts(),
        mixed=mixed(tables["environments"]),
        attribution=attribute_losses(tables),
        claims=tables["claims"].to_dicts(),
        policy_rows=in_cell_order(tables["policies"].to_dicts()),
        budgets_differ=tables["policies"]["budget_tokens"].n_unique() > 1,
        contrasts=tables["contrasts"].to_dicts(),
        predictors=[
            row | {"setting": f"{row['model']}, {row['dataset']}"}
            for row in tables["predictors"].to_dicts()
        ],
        recall_statements=recall_statements(tables["recall_by_depth"]),
        recall=tables["recall_by_depth"].to_dicts(),
        managed=(turns["kind"] != "baseline").any(),
        overshoot=overshoot_rows(turns),
        n_past_window=window.height,
        window_changes=window_change_rows(window, settings["report"]),
        window_known=tables["window"].height > 0,
        verdicts=verdict_rows(tables["verdicts"], settings["report"]),
        own_replies=own_reply_rows(turns, settings["report"]),
        missing_verdicts=missing_verdict_rows(tables["verdicts"]),
        judge_tests=rows_by_measure(tables["reliability"]),
        comparisons=in_cell_order(tables["comparisons"].to_dicts()),
        costs=tables["costs"].to_dicts(),
        not_finite=tables["not_finite"].to_dicts(),
        jobs=tables["jobs"].to_dicts(),
        figures=svg,
        report=settings["report"],
    )
    return page


def as_json(cells: Mapping[str, Any]) -> str:
    """JSON that can stand in a page: it closes no element, and a browser can read every number."""
    return json.dumps(cells, ensure_ascii=False, allow_nan=False).replace("<", "\\u003c")


def cell_key(row: Mapping[str, Any]) -> dict[str, Any]:
    """What the page's script finds a run by."""
    return {name: row[name] for name in CELL}


def inline_svg(svg: str) -> Markup:
    """An SVG to stand in the page, which describes it as one image.

    What its marks stand for moves from `aria-label` to `data-label`, where the page's script finds
    it; the other roles and labels inside would only be read out against the image's own.
    """
    marks = re.sub(r'aria-label="([^"]*)" role="graphics-symbol"', r'data-label="\1"', svg)
    return Markup(re.sub(r' (role|aria-[a-z]+)="[^"]*"', "", marks))


def run_summaries(
    settings: Mapping[str, Any], turns: pl.DataFrame, results: Path
) -> list[dict[str, Any]]:
    """What was run: one entry per model and dataset."""
    entries = []
    chosen = turns.select(
        *("model", "dataset", "model_revision", "dtype", "device", "trained_window"),
        *("token_bytes", "kind", "dialogue", "run", "tokens_seen_end", "replies", "finish_reason"),
    )
    for (model, dataset), part in chosen.group_by("model", "dataset", maintain_order=True):
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


def mixed(environments: pl.DataFrame) -> list[str]:
    """Models whose runs were made in more than one environment."""
    counts = environments.group_by("model", maintain_order=True).len()
    return counts.filter(pl.col("len") > 1)["model"].to_list()


def window_change_rows(window: pl.DataFrame, options: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Claim C1 in numbers, per model and data set: each change with its interval."""
    kinds = {
        "nll_drift_inside": "reference_tokens",
        "nll_change_at_window": "reference_tokens",
        "nll_change_beyond_window": "tokens_beyond",
    }
    rows = []
    for (model, dataset), part in window.group_by("model", "dataset", maintain_order=True):
        row: dict[str, Any] = {"model": model, "dataset": dataset}
        for name, weight in kinds.items():
            known = part.filter(pl.col(name).is_not_null())
            row[name] = None
            if known.height:
                found = clustered_mean(
                    known[name].to_numpy(),
                    known[weight].cast(pl.Float64).to_numpy(),
                    known["dialogue"].to_numpy().astype(str),
                    **{key: options[key] for key in ("confidence", "resamples", "seed")},
                )
                row[name] = {"mean": found.mean, "low": found.low, "high": found.high}
                row[name]["n_dialogues"] = found.n_dialogues
        rows.append(row)
    return rows


def overshoot_rows(turns: pl.DataFrame) -> list[dict[str, Any]]:
    """Claim C3 in numbers: per policy and threshold, how far prefill alone passed the threshold."""
    share = pl.col("prefill_overshoot_share")
    past = turns.filter(share.is_not_null()).group_by("model", "policy", "threshold")
    rows = past.agg(
        turns=pl.len(),
        past=(share > 0).sum(),
        most=share.max(),
        bytes=(share * pl.col("threshold_tokens") * pl.col("token_bytes")).max(),
    )
    return rows.sort("model", "policy", "threshold").to_dicts()


def verdict_rows(verdicts: pl.DataFrame, options: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Mean verdict per judge and cell with its interval; missing verdicts are counted beside."""
    if verdicts.is_empty():
        return []
    rows = []
    with_reply = verdicts.filter(pl.col("status") != "no_reply")
    keys = ["judge", "model", "dataset", "policy", "positions", "threshold"]
    for key, part in with_reply.group_by(keys):
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
    return in_cell_order(rows)


def own_reply_rows(turns: pl.DataFrame, options: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The model's own replies per cell, after an eviction or with none: how likely the full cache
    finds them (with its interval), how they repeat, echo, and agree with the reference."""
    keys = ["model", "dataset", "policy", "positions", "threshold"]
    columns = ("dialogue", "reply_token_count", "reply_nll_baseline", "rep_3", "echo_share", "chrf")
    chosen = turns.lazy().filter(
        pl.col("reply_token_count") > 0,
        pl.col("after_eviction") | (pl.col("kind") == "baseline"),
        pl.col("reply_nll_baseline").is_not_null(),
    )
    with_reply = chosen.select(*keys, *columns, "finish_reason").collect()
    rows = []
    for key, part in with_reply.group_by(keys):
        found = clustered_mean(
            part["reply_nll_baseline"].to_numpy(),
            part["reply_token_count"].cast(pl.Float64).to_numpy(),
            part["dialogue"].to_numpy().astype(str),
            **{name: options[name] for name in ("confidence", "resamples", "seed")},
        )
        means = {name: part[name].mean() for name in ("rep_3", "echo_share", "chrf")}
        estimate: dict[str, Any] = {"mean": found.mean, "low": found.low, "high": found.high}
        estimate["n"] = part.height
        estimate["complete"] = (part["finish_reason"] == "eos").mean()
        rows.append(dict(zip(keys, key, strict=True)) | estimate | means)
    return in_cell_order(rows)


def in_cell_order(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """By place and policy, position modes in the order they have everywhere."""
    names = ("model", "dataset", "threshold", "policy")
    return sorted(
        rows, key=lambda row: ([row[name] for name in names], POSITIONS.index(row["positions"]))
    )


def missing_verdict_rows(verdicts: pl.DataFrame) -> list[dict[str, Any]]:
    """How many verdicts are missing, by judge and reason; turns without a reply are not asked."""
    if verdicts.is_empty():
        return []
    missing = verdicts.filter(~pl.col("status").is_in(["ok", "no_reply"]))
    return missing.group_by("judge", "status").len().sort("judge", "status").to_dicts()
