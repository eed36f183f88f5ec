"""The report: one self-contained page that a person reads from top to bottom."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

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
from kvfidelity.records.columns import Integrity
from kvfidelity.records.declaration import columns
from kvfidelity.report.disruption import SHOWN as SHOWN_MEASURES
from kvfidelity.report.disruption import disruption_answers
from kvfidelity.report.embedding import as_json, security_policy
from kvfidelity.report.glossary import TERMS, shown_columns
from kvfidelity.report.mode_drawing import mode_drawing
from kvfidelity.report.open_questions import open_questions
from kvfidelity.report.page_environment import TEMPLATES, page_environment
from kvfidelity.report.page_figures import figures_by_section
from kvfidelity.report.page_rows import (
    changes_by_setting,
    in_cell_order,
    missing_by_reason,
    mixed,
)
from kvfidelity.report.summary import budgets_run, causes, ranked_groups, without_partner
from kvfidelity.report.transcripts import build_transcripts, transcripts_summary
from kvfidelity.report.what_was_run import policies_run, run_summaries

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
        tables: those named in `page_tables.TABLES`, and `jobs`.
        results: the folder with figures, manifests, tokenizers and artifacts.
        invocation: how the workflow was started: `version`, `commit`, `started`, `command`,
            `configuration`; None or empty if that is not known.
        kinds: what each built-in kind of policy keeps.
    """
    invocation, kinds = invocation or {}, kinds or {}
    environment = page_environment()
    turns = tables["turns"]
    cells = build_transcripts(turns, tables["evictions"], results, settings["session"])
    script = (TEMPLATES / "page.js").read_text("utf-8")
    environments = tables["environments"]
    made = environments.select(pl.col("first_made").min(), pl.col("last_made").max()).row(0)
    known = environments.drop_nulls("hardware")
    ranking = ranked_groups(tables["ranking"], tables["recall_by_depth"])
    page: str = environment.get_template("page.html.j2").render(
        title=settings["title"],
        style=Markup((TEMPLATES / "page.css").read_text("utf-8")),
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


def _with_contents(page: str) -> str:
    """The page with links to the sections that it has; which those are, its templates decide."""
    present = [(anchor, name) for anchor, name in CONTENTS.items() if f'id="{anchor}"' in page]
    links = "".join(f'<li><a href="#{anchor}">{name}</a></li>\n' for anchor, name in present)
    return page.replace("<ol>\n</ol>\n</nav>", f"<ol>\n{links}</ol>\n</nav>", 1)


def as_yaml(configuration: Mapping[str, Any] | None) -> str:
    """The configuration as a person would write it; "" if it is not known."""
    if not configuration:
        return ""
    return str(yaml.safe_dump(dict(configuration), sort_keys=False, allow_unicode=True, width=100))
