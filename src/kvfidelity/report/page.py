"""The report: one self-contained page that a person reads from top to bottom."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jinja2
import polars as pl
import yaml
from markupsafe import Markup

from kvfidelity.analysis.attribution import MARGIN
from kvfidelity.analysis.columns import TABLES as TABLE_COLUMNS
from kvfidelity.analysis.decisions import NOT_TESTED
from kvfidelity.analysis.not_evicted import cells_without_evictions
from kvfidelity.analysis.recall import recall_statements
from kvfidelity.analysis.reliability import rows_by_measure
from kvfidelity.analysis.statistics import MIN_DIALOGUES, MIN_DIALOGUES_WITHIN
from kvfidelity.analysis.table_names import table_endings
from kvfidelity.analysis.window import CHANGES
from kvfidelity.records.columns import Integrity
from kvfidelity.records.declaration import columns
from kvfidelity.records.grid import CELL_COLUMNS
from kvfidelity.report.disruption import SHOWN as SHOWN_MEASURES
from kvfidelity.report.disruption import disruption_answers
from kvfidelity.report.figure_registry import FIGURES, SECTIONS
from kvfidelity.report.formatting import (
    cell_text,
    count,
    day,
    decimal,
    depth_name,
    extent,
    interval,
    interval_of,
    megabytes,
    moment,
    p_value,
    percent,
    percent_range,
    perplexity,
    rounded,
    signed,
    whole,
)
from kvfidelity.report.glossary import TERMS, shown_columns
from kvfidelity.report.mode_drawing import mode_drawing
from kvfidelity.report.open_questions import open_questions
from kvfidelity.report.paper_tables import cell_name, claim_question
from kvfidelity.report.position_modes import position_order
from kvfidelity.report.summary import budgets_run, causes, ranked_groups, without_partner
from kvfidelity.report.transcripts import build_transcripts, transcripts_summary
from kvfidelity.report.what_was_run import policies_run, run_summaries

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
    "ranking",
    "recall",
    "contrasts",
    "attribution",
    "predictors",
    "predictor_validation",
    "penalties",
    "window",
    "window_changes",
    "environments",
    "recall_by_depth",
    "healings",
    "finetuning",
    "balance",
    "balance_pairs",
    "claims",
    "reliability",
    "comparisons",
    "missing_comparisons",
    "costs",
    "not_finite",
)


#: Sections by their anchors, in the order of the page, and what the contents call them.
CONTENTS = {
    "answer": "Answer and ranking",
    "terms": "What the words mean",
    "causes": "What positions cost",
    "claims": "Claims",
    "questions": "Open questions",
    "run": "What was run",
    "cells-head": "Policy and position mode",
    "recall": "What each policy forgets",
    "cache": "What the cache holds",
    "positions": "Positions and the loss",
    "disruption": "A measure of disruption",
    "window": "Through the trained window",
    "cost": "What it costs",
    "contrasts": "Paired contrasts",
    "verdicts": "Verdicts",
    "judges": "Judges",
    "own": "Own replies",
    "replies": "Two replies side by side",
    "jobs": "Seconds of the jobs",
    "glossary": "Glossary",
    "limits": "Limits",
}
#: Of a figure's numbers, as many rows stand in the page; its CSV has all.
FIGURE_ROWS = 40


def render(
    settings: Mapping[str, Any],
    tables: Mapping[str, pl.DataFrame],
    results: Path,
    invocation: Mapping[str, Any] | None = None,
    kinds: Mapping[str, str] | None = None,
) -> str:
    """The page as HTML.

    Args:
        settings: what `rule_params.report_settings` chooses of the configuration.
        tables: those named in TABLES, and `jobs`.
        results: the folder with figures, manifests, tokenizers and artifacts.
        invocation: how the workflow was started: `version`, `commit`, `started`, `command`,
            `configuration`; None or empty if that is not known.
        kinds: what each built-in kind of policy keeps.
    """
    invocation, kinds = invocation or {}, kinds or {}
    here = Path(__file__).parent / "templates"
    environment = _environment(here)
    turns = tables["turns"]
    cells = build_transcripts(turns, tables["evictions"], results, settings["session"])
    script = (here / "page.js").read_text("utf-8")
    environments = tables["environments"]
    made = environments.select(pl.col("first_made").min(), pl.col("last_made").max()).row(0)
    known = environments.drop_nulls("hardware")
    ranking = ranked_groups(tables["ranking"], tables["recall_by_depth"])
    page: str = environment.get_template("page.html.j2").render(
        title=settings["title"],
        style=Markup((here / "page.css").read_text("utf-8")),
        script=Markup(script),
        security_policy=security_policy(script),
        cells=Markup(as_json(cells)),
        transcripts_summary=transcripts_summary(cells),
        setups=run_summaries(settings, tables, results),
        policies_run=policies_run(turns, kinds),
        drawing=mode_drawing(),
        invocation=invocation,
        configuration=as_yaml(invocation.get("configuration")),
        made=made if made[0] else None,
        machines=known["hardware"].unique().sort().to_list(),
        hardware=lambda model: known.filter(model=model)["hardware"].unique().sort().to_list(),
        ranking=ranking,
        budgets_run=budgets_run(ranking),
        causes=causes(tables["attribution"]),
        loss_margin=MARGIN,
        batch_size=_session(invocation).get("batch_size"),
        alone=without_partner(tables["policies"], tables["attribution"]),
        environments=environments.to_dicts(),
        mixed=mixed(environments),
        not_evicted=cells_without_evictions(turns),
        attribution=tables["attribution"].to_dicts(),
        silent=tables["baselines"].filter("knows_nothing").to_dicts(),
        claims=tables["claims"].filter(pl.col("decision") != NOT_TESTED).to_dicts(),
        claims_not_tested=tables["claims"].filter(decision=NOT_TESTED).to_dicts(),
        open_questions=open_questions(tables),
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
        disruption=disruption_answers(
            tables["predictor_validation"], tables["penalties"], tables["policies"]
        ),
        disruption_measures=SHOWN_MEASURES,
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
        csv_tables=[name for name in TABLE_COLUMNS if "csv" in table_endings(name)],
        figures=figures_by_section(results / "figures", settings["report"]),
        report=settings["report"],
    )
    return _with_contents(page)


def _session(invocation: Mapping[str, Any]) -> Mapping[str, Any]:
    """The section `session` of the configuration that was started; empty if it is not known."""
    session: Mapping[str, Any] = (invocation.get("configuration") or {}).get("session", {})
    return session


def _environment(templates: Path) -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(templates),
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
        "percent": percent,
        "span": percent_range,
        "extent": extent,
        "decimal": decimal,
        "rounded": rounded,
        "whole": whole,
        "count_of": count,
        "megabytes": megabytes,
        "perplexity": perplexity,
        "moment": moment,
        "day": day,
        "depth_name": depth_name,
        "claim_question": claim_question,
        "cell_key": cell_key,
        "claim_cells": claim_cells,
        "contrast_cells": contrast_cells,
    }
    environment.globals |= {"cell_name": cell_name}
    return environment


def _with_contents(page: str) -> str:
    """The page with links to the sections that it has; which those are, its templates decide."""
    present = [(anchor, name) for anchor, name in CONTENTS.items() if f'id="{anchor}"' in page]
    links = "".join(f'<li><a href="#{anchor}">{name}</a></li>\n' for anchor, name in present)
    return page.replace("<ol>\n</ol>\n</nav>", f"<ol>\n{links}</ol>\n</nav>", 1)


def security_policy(script: str) -> str:
    """What a browser lets the page do: its one script, its styles, its images; no request."""
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    allowed = {
        "default-src": "'none'",
        "script-src": f"'sha256-{digest}'",
        "style-src": "'unsafe-inline'",
        "img-src": "data:",
        "base-uri": "'none'",
        "form-action": "'none'",
    }
    return "; ".join(f"{name} {value}" for name, value in allowed.items())


def as_yaml(configuration: Mapping[str, Any] | None) -> str:
    """The configuration as a person would write it; "" if it is not known."""
    if not configuration:
        return ""
    return str(yaml.safe_dump(dict(configuration), sort_keys=False, allow_unicode=True, width=100))


def as_json(cells: Mapping[str, Any]) -> str:
    """JSON that can stand in a page: it closes no element, and a browser can read every number."""
    return json.dumps(cells, ensure_ascii=False, allow_nan=False).replace("<", "\\u003c")


def cell_key(row: Mapping[str, Any]) -> dict[str, Any]:
    """What the page's script finds a run by."""
    return {name: row[name] for name in CELL_COLUMNS}


def claim_cells(row: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The cell that a claim is about, and the one that it is compared with, if there is one."""
    cells = [dict(row)]
    policy, _, positions = (row["against"] or "").rpartition(", ")
    if policy:
        cells.append(dict(row) | {"policy": policy, "positions": positions})
    return cells


def contrast_cells(row: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Both sides of a contrast."""
    return [dict(row) | {row["factor"]: row[side]} for side in ("first", "second")]


def missing_by_reason(table: pl.DataFrame) -> list[dict[str, Any]]:
    """Missing verdicts by judge and reason, with the turns that they are of as text."""
    of_turn = pl.format("turn {}: {} of {}", "turn", "missing", "replies")
    return (
        table.group_by("judge", "status", maintain_order=True)
        .agg(pl.col("missing").sum(), turns=of_turn.str.join(", "))
        .to_dicts()
    )


def inline_svg(svg: str, name: str) -> Markup:
    """An SVG to stand in the page, which describes it as one image.

    Every figure numbers its clip paths from zero, so its name makes them different.

    What its marks stand for moves from `aria-label` to `data-label`, where the page's script finds
    it; the other roles and labels inside would only be read out against the image's own.
    """
    marks = re.sub(r'aria-label="([^"]*)" role="graphics-symbol"', r'data-label="\1"', svg)
    marks = re.sub(r'\bid="([^"]+)"', rf'id="{name}-\1"', marks)
    marks = re.sub(r"url\(#([^)]+)\)", rf"url(#{name}-\1)", marks)
    return Markup(re.sub(r' (role|aria-[a-z]+)="[^"]*"', "", marks))


def mixed(environments: pl.DataFrame) -> list[str]:
    """Models whose runs were made in more than one environment."""
    counts = environments.group_by("model", maintain_order=True).len()
    return counts.filter(pl.col("len") > 1)["model"].to_list()


def figures_by_section(folder: Path, report: Mapping[str, Any]) -> dict[str, list[dict[str, Any]]]:
    """The figures of each section of the page: `name`, `svg`, `narrow` (for narrow screens),
    `alt_text`, `caption`, and of its numbers `head`, `rows` (the first FIGURE_ROWS) and `n_rows`.
    """
    sections: dict[str, list[dict[str, Any]]] = {name: [] for name in SECTIONS}
    for figure in FIGURES:
        entry: dict[str, Any] = {"name": figure.name, "alt_text": figure.alt_text}
        entry["caption"] = figure.caption_with(report["confidence"])
        for form, ending in (("svg", "svg"), ("narrow", "narrow.svg")):
            text = (folder / f"{figure.name}.{ending}").read_text("utf-8")
            entry[form] = inline_svg(text, f"{figure.name}-{form}")
        file = folder / f"{figure.name}.csv"
        rows = pl.read_csv(file, glob=False) if file.read_text("utf-8").strip() else pl.DataFrame()
        shown = [[cell_text(value) for value in row] for row in rows.head(FIGURE_ROWS).rows()]
        entry |= {"head": rows.columns, "rows": shown, "n_rows": rows.height}
        sections[figure.section].append(entry)
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
        rows, key=lambda row: ([row[name] for name in names], position_order(row["positions"]))
    )
