"""Two runs beside each other."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from kvfidelity.analysis.compare import compare
from kvfidelity.analysis.tables import gather
from kvfidelity.artifacts import write_parquet
from kvfidelity.errors import UserError

from .synthetic import settings, write

OPTIONS: dict[str, Any] = {"confidence": 0.95, "resamples": 200, "seed": 0}


def finished(folder: Path, cost: float, **changes: Any) -> Path:
    chosen = settings(3, **changes)
    write(folder, chosen, {("attention_top", "stale"): cost}, turns=8)
    write_parquet(gather(chosen, folder)["turns"], folder / "tables/turns.parquet", kind="turns")
    return folder


def test_a_change_is_paired_and_the_rest_stays(tmp_path: Path) -> None:
    policies = {"baseline": {"kind": "baseline"}, "attention_top": {"kind": "attention_top"}}
    one = finished(tmp_path / "a", 1.0)
    other = finished(tmp_path / "b", 1.5, policies=policies)
    text = compare(one, other, OPTIONS)
    [row] = [line for line in text.splitlines() if "attention_top, stale" in line]
    assert "| +0.500 | [+0.500, +0.500] | 3 |" in row
    [row] = [line for line in text.splitlines() if "attention_top, rerotated" in line]
    assert "| 0.000 | [0.000, 0.000] | 3 |" in row
    assert "Only in A: synthetic, made, gist, original, half" in text


def test_an_unfinished_run_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds no finished run"):
        compare(tmp_path, tmp_path, OPTIONS)
