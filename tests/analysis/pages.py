"""Pages of synthetic grids, made by the workflow's own scripts in this process."""

from __future__ import annotations

import html
import itertools
import json
import re
import runpy
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import altair as alt

from kvfidelity.atomic_files import write_text
from kvfidelity.pipeline.rule_params import grid_settings, report_settings, table_settings
from kvfidelity.records.artifacts import read_parquet, write_parquet
from kvfidelity.report.figure_registry import TABLES, charts
from kvfidelity.report.figure_rows import figure_rows
from kvfidelity.report.theme import save_for_page, svg, with_theme
from tests.analysis.synthetic import settings, write
from tests.analysis.test_reliability import judge_test

ROOT = Path(__file__).parents[2]
COSTS = {("attention_top", "stale"): 2.0, ("sliding_window_gist", "stale"): 0.4}
EVICTING = {
    "attention_top": {"kind": "attention_top"},
    "gist": {"kind": "sliding_window_gist"},
    "streaming_llm": {"kind": "streaming_llm"},
}


def script(name: str, *arguments: object) -> None:
    """Run a script of the workflow in this process."""
    before = sys.argv
    sys.argv = [name, *map(str, arguments)]
    try:
        runpy.run_path(str(ROOT / "workflow/scripts" / name), run_name="__main__")
    finally:
        sys.argv = before


def made(folder: Path, grid: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration of a grid and its artifacts, in results/ below the folder."""
    policies = {"baseline": {"kind": "baseline"}}
    policies |= dict(itertools.islice(EVICTING.items(), grid["policies"]))
    chosen = settings(
        grid["dialogues"],
        policies=policies,
        grid={"positions": grid["positions"]},
        judging=["formula"] if grid["judged"] else [],
    )
    chosen_effects = {name: grid[name] for name in ("turns", "probes", "noise", "memory_for")}
    write(folder / "results", chosen, COSTS, edge=0.3, **chosen_effects)
    return chosen


def page(folder: Path, chosen: Mapping[str, Any], *, tested: bool, for_phones: bool = True) -> str:
    """The page, made by the workflow's scripts.

    Args:
        tested: a judge was tested.
        for_phones: figures have a narrow form; else the wide one stands for it, in half the time.
    """
    results, tables = folder / "results", folder / "results/tables"
    wanted = table_settings(chosen, results)
    script(
        *("aggregate.py", "--settings", json.dumps(wanted)),
        *("--results", results, "--out", tables),
    )
    trials = []
    if tested:
        trials = [results / "reliability/formula/synthetic/made/judge_test.parquet"]
        scored = judge_test("formula", lambda kind, item, _: 8 if kind == "good" else 2)
        write_parquet(scored, trials[0], kind="judge_test")
    judging = json.dumps(grid_settings(chosen))
    script(
        "judge_reliability.py",
        "--settings",
        judging,
        "--results",
        results,
        "--judge-tests",
        *trials,
    )
    report = json.dumps(chosen["report"])
    claims = ROOT / "config/claims.yaml"
    script("claims.py", "--settings", report, "--tables", tables, "--claims", claims)
    drawn = {name: read_parquet(tables / f"{name}.parquet", kind=name) for name in TABLES}
    for name, chart in charts(drawn).items():
        save = save_for_page if for_phones else save_wide
        save(chart, results / "figures", name)
    about = json.dumps(report_settings(chosen))
    out = folder / "report.html"
    script("report.py", "--settings", about, "--results", results, "--out", out)
    return (folder / "report.html").read_text(encoding="utf-8")


def save_wide(chart: alt.TopLevelMixin, folder: Path, name: str) -> None:
    """The wide form of a figure under the names of both, and its numbers."""
    spec = with_theme(chart)
    drawn = svg(spec, name)
    write_text(folder / f"{name}.csv", figure_rows(spec).write_csv())
    for ending in ("svg", "narrow.svg"):
        write_text(folder / f"{name}.{ending}", drawn)


def prose(text: str) -> str:
    """What a person reads of a page, figures aside."""
    bare = re.sub(r"<(svg|script|style)\b.*?</\1>", " ", text, flags=re.DOTALL)
    return html.unescape(re.sub(r"\s+", " ", re.sub("<[^>]+>", " ", bare)))
