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

from kvfidelity.analysis.decisions import NOT_TESTED
from kvfidelity.analysis.not_evicted import cells_without_evictions
from kvfidelity.analysis.recall import recall_statements
from kvfidelity.analysis.reliability import rows_by_measure
from kvfidelity.analysis.statistics import MIN_DIALOGUES, MIN_DIALOGUES_WITHIN
from kvfidelity.analysis.window import CHANGES
from kvfidelity.records.columns import Integrity
from kvfidelity.records.declaration import columns
from kvfidelity.records.grid import CELL_COLUMNS, MANIFEST, POSITIONS
from kvfidelity.report.figure_registry import FIGURES, SECTIONS
from kvfidelity.report.formatting import (
    count,
    decimal,
    extent,
    interval,
    interval_of,
    p_value,
    percent,
    percent_range,
    rounded,
    signed,
)
from kvfidelity.report.glossary import TERMS, shown_columns
from kvfidelity.report.paper_tables import cell_name, claim_question
from kvfidelity.report.transcripts import build_transcripts, transcripts_summary

TABLES = (
    "turns",
    "evictions",
    "verdict_means",
    "missing_verdicts",
    "missing_by_cell",
    "own_replies",
    "prefill_overshoot",
    "baselines",
    "policies",
    "contrasts",
    "attribution",
    "predictors",
    "window",
    "window_changes",
    "environments",
    "recall_by_depth",
    "claims",
    "reliability",
    "comparisons",
    "missing_comparisons",
    "costs",
    "not_finite",
)


def render(settings: Mapping[str, Any], tables: Mapping[str, pl.DataFrame], results: Path) -> str:
    """The page as HTML.

    Args:
        settings: what `rule_params.report_settings` chooses of the configuration.
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
        "interval_of": interval_of,
        "p": p_value,
        "claim_question": claim_question,
    }
    environment.filters |= {
        "percent": percent,
        "span": percent_range,
        "extent": extent,
        "decimal": decimal,
    }
    environment.filters |= {"rounded": rounded, "count_of": count}
    environment.globals |= {"cell_name": cell_name, "cell_key": cell_key}
    turns = tables["turns"]
    cells = build_transcripts(turns, tables["evictions"], results, settings["session"])
    page: str = environment.get_template("page.html.j2").render(
        title=settings["title"],
        style=Markup((here / "page.css").read_text("utf-8")),
        script=Markup((here / "page.js").read_text("utf-8")),
        cells=Markup(as_json(cells)),
        transcripts_summary=transcripts_summary(cells),
        setups=run_summaries(settings, turns, results),
        environments=tables["environments"].to_dicts(),
        mixed=mixed(tables["environments"]),
        not_evicted=cells_without_evictions(turns),
        attribution=tables["attribution"].to_dicts(),
        silent=tables["baselines"].filter("knows_nothing").to_dicts(),
        claims=tables["claims"].filter(pl.col("decision") != NOT_TESTED).to_dicts(),
        claims_not_tested=tables["claims"].filter(decision=NOT_TESTED).to_dicts(),
        policy_rows=in_cell_order(tables["policies"].to_dicts()),
        budgets_differ=tables["policies"]["budget_tokens"].n_unique() > 1,
        contrasts=tables["contrasts"].to_dicts(),
        contrasts_tested=tables["contrasts"]["p_holm"].is_not_null().any(),
        min_dialogues=MIN_DIALOGUES,
        min_dialogues_within=MIN_DIALOGUES_WITHIN,
        predictors=[
            row | {"setting": f"{row['model']}, {row['dataset']}"}
            for row in tables["predictors"].to_dicts()
        ],
        recall_statements=recall_statements(tables["recall_by_depth"]),
        recall=tables["recall_by_depth"].to_dicts(),
        managed=(turns["kind"] != "baseline").any(),
        overshoot=tables["prefill_overshoot"].to_dicts(),
        n_past_window=tables["window_changes"]
        .filter(change="nll_change_at_window")["n_runs"]
        .sum(),
        window_changes=changes_by_setting(tables["window_changes"]),
        window_known=tables["window"].filter(kind="baseline").height > 0,
        verdicts=tables["verdict_means"].to_dicts(),
        own_replies=tables["own_replies"].to_dicts(),
        missing_verdicts=missing_by_reason(tables["missing_verdicts"]),
        missing_by_cell=tables["missing_by_cell"].to_dicts(),
        judge_tests=rows_by_measure(tables["reliability"]),
        comparisons=in_cell_order(tables["comparisons"].to_dicts()),
        missing_comparisons=tables["missing_comparisons"].to_dicts(),
        costs=tables["costs"].to_dicts(),
        not_finite=tables["not_finite"].to_dicts(),
        jobs=tables["jobs"].to_dicts(),
        integrity=columns(Integrity),
        terms=TERMS,
        shown_columns=shown_columns(tables),
        figures=figures_by_section(results / "figures", settings["report"]),
        report=settings["report"],
    )
    return page


def as_json(cells: Mapping[str, Any]) -> str:
    """JSON that can stand in a page: it closes no element, and a browser can read every number."""
    return json.dumps(cells, ensure_ascii=False, allow_nan=False).replace("<", "\\u003c")


def cell_key(row: Mapping[str, Any]) -> dict[str, Any]:
    """What the page's script finds a run by."""
    return {name: row[name] for name in CELL_COLUMNS}


def missing_by_reason(table: pl.DataFrame) -> list[dict[str, Any]]:
    """Missing verdicts by judge and reason, with the turns that they are of as text."""
    of_turn = pl.format("turn {}: {} of {}", "turn", "missing", "replies")
    return (
        table.group_by("judge", "status", maintain_order=True)
        .agg(pl.col("missing").sum(), turns=of_turn.str.join(", "))
        .to_dicts()
    )


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
        manifest = results / "dialogues" / str(model) / str(dataset) / MANIFEST
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


def figures_by_section(folder: Path, report: Mapping[str, Any]) -> dict[str, list[dict[str, Any]]]:
    """The figures of each section of the page: `svg`, `alt` and `caption`."""
    sections: dict[str, list[dict[str, Any]]] = {name: [] for name in SECTIONS}
    for figure in FIGURES:
        svg = inline_svg((folder / f"{figure.name}.svg").read_text("utf-8"))
        caption = figure.caption_with(report["confidence"])
        sections[figure.section].append(
            {"svg": svg, "alt_text": figure.alt_text, "caption": caption}
        )
    return sections


def changes_by_setting(changes: pl.DataFrame) -> list[dict[str, Any]]:
    """One entry per model and dataset, with each of its changes by name; None if there is none."""
    entries = []
    for (model, dataset), part in changes.group_by("model", "dataset", maintain_order=True):
        by_name = {row["change"]: row for row in part.to_dicts()}
        entries.append(
            {"model": model, "dataset": dataset} | {name: by_name.get(name) for name in CHANGES}
        )
    return entries


def in_cell_order(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows by setting and policy, position modes in their usual order."""
    names = ("model", "dataset", "threshold", "policy")
    return sorted(
        rows, key=lambda row: ([row[name] for name in names], POSITIONS.index(row["positions"]))
    )
