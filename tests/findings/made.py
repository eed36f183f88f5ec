"""Finished runs of findings with synthetic numbers, made by the workflow's own scripts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from kvfidelity.analysis.jobs import jobs_table
from kvfidelity.analysis.table_files import write_table
from kvfidelity.findings.plan import Finding
from kvfidelity.pipeline.invocation import write_invocation
from kvfidelity.pipeline.rule_params import grid_settings, table_settings
from kvfidelity.pipeline.settings import read_settings
from kvfidelity.records.grid import run_keys
from tests.analysis.pages import COSTS, script
from tests.analysis.synthetic import settings, write

ROOT = Path(__file__).parents[2]


def reduced(finding: Finding, model: str, dialogues: int) -> dict[str, Any]:
    """A finding's policies, thresholds, grid and judges, with dialogues that are made up."""
    whole = read_settings([ROOT / file for file in finding.files(model)])
    names = ("policies", "thresholds", "positions", "exclude", "include")
    grid = {name: whole["grid"][name] for name in names}
    grid["exclude"] = [cell for cell in grid["exclude"] if cell.get("model", model) == model]
    for cell in grid["include"]:
        cell.pop("dataset", None)  # there is one, which is made up
    formula = {"kind": "formula", "rubric": "formula"}
    models: dict[str, Any] = {
        model: {"source": "path", "path": "none", "label": "synthetic numbers"}
    }
    for name, entry in whole["models"].items():
        if "adapter" in entry:
            recipe = {key: entry["adapter"][key] for key in ("base", "arm", "seed", "loss")}
            models[name] = {"source": "adapter", "adapter": recipe | {"data": "made"}}
    return settings(
        dialogues,
        models=models,
        policies=whole["policies"],
        thresholds=whole["thresholds"],
        grid=grid,
        session={"replies": whole["session"]["replies"]},
        judges=dict.fromkeys(whole["judging"] or ["formula"], formula),
        judging=whole["judging"],
    )


def made_run(results: Path, finding: Finding, model: str, dialogues: int = 2) -> Path:
    """The folder of a finished run of a finding."""
    chosen = reduced(finding, model, dialogues)
    write(results, chosen, COSTS, edge=0.3, probes=2)
    write_invocation(results, chosen, ["/usr/bin/snakemake", "--cores", "1"], ROOT)
    tables = results / "tables"
    wanted = json.dumps(table_settings(chosen, results))
    script("aggregate.py", "--settings", wanted, "--results", results, "--out", tables)
    judging = json.dumps(grid_settings(chosen))
    script("judge_reliability.py", "--settings", judging, "--results", results, "--judge-tests")
    report, claims = json.dumps(chosen["report"]), ROOT / "config/claims.yaml"
    script("claims.py", "--settings", report, "--tables", tables, "--claims", claims)
    write_table(tables, "jobs", jobs_table(results, run_keys(chosen)), {})
    return results
