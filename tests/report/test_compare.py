"""Two runs compared."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from kvfidelity.analysis.claims import Claim, evaluate_claims
from kvfidelity.analysis.tables import build_tables
from kvfidelity.errors import UserError
from kvfidelity.records.artifacts import write_parquet
from kvfidelity.report.compare import compare
from tests.analysis.synthetic import settings, write

CLAIM = Claim("X", "a claim", "excess_nll", {"kind": "attention_top"}, "above", 0.7, 2)
OPTIONS: dict[str, Any] = {"confidence": 0.95, "resamples": 200, "seed": 0}


def finished(folder: Path, cost: float, probes: int = 0, **changes: Any) -> Path:
    chosen = settings(10, **changes)
    write(folder, chosen, {("attention_top", "stale"): cost}, turns=8, probes=probes)
    tables = build_tables(chosen, folder)
    tables["claims"] = evaluate_claims([CLAIM], tables, OPTIONS)
    for name in ("turns", "recall", "claims", "own_replies", "verdict_means"):
        write_parquet(tables[name], folder / f"tables/{name}.parquet", kind=name)
    return folder


def test_a_change_is_paired_and_the_rest_stays(tmp_path: Path) -> None:
    policies = {"baseline": {"kind": "baseline"}, "attention_top": {"kind": "attention_top"}}
    one = finished(tmp_path / "a", 1.0)
    other = finished(tmp_path / "b", 1.5, policies=policies)
    text, summaries = compare(one, other, OPTIONS).split("## Mean verdict")
    assert "Recall" not in text + summaries, "no run has questions"
    [row] = [line for line in text.splitlines() if "attention_top, stale" in line]
    assert "| +0.500 | [+0.500, +0.500] | 10 |" in row
    [row] = [line for line in text.splitlines() if "attention_top, rerotated" in line]
    assert "| 0.000 | equal in every turn | 10 |" in row
    assert "Only in A: synthetic, made, gist, original, half" in text
    _, own = summaries.split("## Own replies")
    [row] = [line for line in own.splitlines() if "attention_top, stale, half |" in line]
    assert row.endswith("| +2.000 | +2.500 | +0.500 |")


def test_questions_and_verdicts_are_compared(tmp_path: Path) -> None:
    one = finished(tmp_path / "a", 0.2, probes=2)
    other = finished(tmp_path / "b", 1.5, probes=2)
    text = compare(one, other, OPTIONS)
    [row] = [line for line in text.splitlines() if "gist, stale, half, needle, recent" in line]
    assert "| 0.000 | equal in every turn | 10 |" in row
    [row] = [line for line in text.splitlines() if line.startswith("| X |")]
    assert "attention_top, stale" in row
    assert "not decided (+0.2" in row
    assert "supported (+1.5" in row
    assert "2 of 3 shared decisions are the same." in text


def test_an_unfinished_run_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds no finished run"):
        compare(tmp_path, tmp_path, OPTIONS)
