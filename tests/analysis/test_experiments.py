"""The experiments with two dialogues of synthetic numbers: each ends in a page, and each claim that
it tests finds its runs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from kvfidelity.analysis.claims import read_claims
from kvfidelity.pipeline.rule_params import report_settings
from kvfidelity.pipeline.settings import read_settings
from kvfidelity.records.artifacts import read_parquet, write_parquet
from tests.analysis.pages import COSTS, page, prose, script
from tests.analysis.synthetic import settings, write

ROOT = Path(__file__).parents[2]
CLAIMS = read_claims(ROOT / "config/claims.yaml")
EXPERIMENTS = sorted({str(claim.tested_in) for claim in CLAIMS})


def reduced(config: str) -> dict[str, Any]:
    """Its policies, thresholds, grid, replies and judges, with two dialogues that are made up."""
    files = dict.fromkeys([ROOT / "config/config.yaml", ROOT / config])
    whole = read_settings(list(files))
    grid = {
        name: whole["grid"][name]
        for name in ("policies", "thresholds", "positions", "exclude", "include")
    }
    grid["exclude"] = [cell for cell in grid["exclude"] if "model" not in cell]
    for cell in grid["include"]:
        cell.pop("dataset", None)  # there is one, which is made up
    models: dict[str, Any] = {"synthetic": {"source": "path", "path": "none"}}
    for name, entry in whole["models"].items():
        if "adapter" in entry:
            recipe = {key: entry["adapter"][key] for key in ("arm", "seed", "loss")}
            adapter = recipe | {"base": "synthetic", "data": "made"}
            models[name] = {"source": "adapter", "adapter": adapter}
    formula = {"kind": "formula", "rubric": "formula"}
    return settings(
        2,
        models=models,
        policies=whole["policies"],
        thresholds=whole["thresholds"],
        grid=grid,
        session={"replies": whole["session"]["replies"]},
        judges=dict.fromkeys(whole["judging"] or ["formula"], formula),
        judging=whole["judging"],
    )


@pytest.mark.parametrize("config", EXPERIMENTS)
def test_an_experiment_of_two_dialogues_tests_its_claims(tmp_path: Path, config: str) -> None:
    chosen = reduced(config)
    write(tmp_path / "results", chosen, COSTS, edge=0.3, probes=2)
    shown = prose(page(tmp_path, chosen, tested=False, for_phones=False))
    found = read_parquet(tmp_path / "results/tables/claims.parquet", kind="claims")
    for claim in CLAIMS:
        if claim.tested_in != config:
            continue
        for row in found.filter(claim=claim.claim).to_dicts():
            if claim.min_questions:
                assert row["reason"].startswith(f"4 of the {claim.min_questions} questions")
            elif claim.claim in (
                "C3",
                "P8",
            ):  # no made-up prompt is long; disruption is not made up
                assert row["decision"] == "not tested here"
            else:
                few = f"2 of the {claim.min_dialogues} dialogues that it takes"
                assert (row["decision"], row["reason"]) == ("not decided", few), claim.claim
        assert claim.statement in shown


def test_what_could_not_be_paired_is_shown(tmp_path: Path) -> None:
    chosen = reduced("config/config.yaml")
    write(tmp_path / "results", chosen, COSTS, probes=2)
    before = prose(page(tmp_path, chosen, tested=False, for_phones=False))
    assert "3 unpaired" not in before and "only one of the two modes" not in before
    for name, number in (("claims", 3), ("attribution", 1)):
        file = tmp_path / f"results/tables/{name}.parquet"
        rows = read_parquet(file, kind=name).with_columns(n_unpaired=pl.lit(number, pl.Int64))
        write_parquet(rows, file, kind=name)
    about, out = json.dumps(report_settings(chosen)), tmp_path / "again.html"
    script("report.py", "--settings", about, "--results", tmp_path / "results", "--out", out)
    shown = prose(out.read_text(encoding="utf-8"))
    assert "3 unpaired" in shown
    assert "1 turn that only one of the two modes has is left out" in shown
