"""A second run of a finding: only how far it differs from the published one is published."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from kvfidelity.errors import UserError
from kvfidelity.findings.export import export_repetition
from kvfidelity.findings.page import page
from kvfidelity.findings.plan import SMOLLM2
from kvfidelity.findings.published import AGAIN, FACTS
from kvfidelity.findings.repetition import REPETITION, compare, repetition_sentences
from kvfidelity.records.artifacts import read_parquet, write_parquet

CELL = {"model": "synthetic", "dataset": "d", "threshold": "t", "positions": "stale"}


def losses(**means: float | None) -> pl.DataFrame:
    """A synthetic table `policies`, by policy."""
    rows: list[dict[str, Any]] = [
        {**CELL, "policy": policy, "mean": mean, "low": 0.0, "high": 1.0}
        for policy, mean in means.items()
    ]
    return pl.DataFrame(rows, schema_overrides={"mean": pl.Float64})


def compared(first: pl.DataFrame, second: pl.DataFrame) -> dict[str, object]:
    table = compare({"policies": first}, {"policies": second})
    assert dict(table.schema) == REPETITION
    return table.filter(column="mean").row(0, named=True)


def test_a_number_differs_if_its_last_shown_digit_does() -> None:
    # Synthetic: 0.104 and 0.1049 are both shown as +0.10; 0.2 and 0.21 are not alike.
    found = compared(losses(gist=0.104, h2o=0.2), losses(h2o=0.21, gist=0.1049))
    assert (found["numbers"], found["shown_differently"]) == (2, 1)
    assert found["max_difference"] == pytest.approx(0.01)
    assert found["mean_difference"] == pytest.approx((0.01 + 0.0009) / 2)


def test_a_number_that_one_run_lacks_differs() -> None:
    found = compared(losses(gist=0.1, h2o=None), losses(gist=0.1, snapkv=0.3))
    assert (found["numbers"], found["shown_differently"]) == (2, 1)
    assert found["max_difference"] == 0


def test_the_sentence_says_whether_a_shown_digit_differs() -> None:
    facts = {"hardware": ["GPU"], "device": "GPU", "date": "2026-01-01", "commit": "abc"}
    one = losses(gist=0.1)
    (alike,) = repetition_sentences(compare({"policies": one}, {"policies": one}), facts)
    assert "each of the 3 numbers in the tables above is shown with the same digits" in alike
    other = compare({"policies": one}, {"policies": losses(gist=0.2)})
    (differing,) = repetition_sentences(other, facts)
    assert "1 of the 3 numbers in the tables above differs in the last digit" in differing
    assert "0.1 (`mean` in `policies`)" in differing


@pytest.fixture
def published(docs: Path, tmp_path: Path) -> Path:
    folder = tmp_path / "docs"
    shutil.copytree(docs, folder)
    return folder


def second_run(finished: Path, folder: Path, made: str, by: float) -> Path:
    """A copy of the finished run with other losses, made at another time."""
    shutil.copytree(finished / "equal_budgets", folder)
    for name, columns in (
        ("environments", {"first_made": pl.lit(made), "last_made": pl.lit(made)}),
        ("policies", {"mean": pl.col("mean") + by}),
    ):
        file = folder / f"tables/{name}.parquet"
        write_parquet(read_parquet(file, kind=name).with_columns(**columns), file, kind=name)
    return folder


def test_the_page_shows_how_far_a_second_run_differs(
    finished: Path, published: Path, tmp_path: Path
) -> None:
    before = {file.name for file in (published / "equal_budgets" / SMOLLM2).iterdir()}
    again = second_run(finished, tmp_path / "again", "2999-01-01T00:00:00+00:00", 0.25)
    (folder,) = export_repetition(again, "equal_budgets", published)
    assert {file.name for file in folder.iterdir()} - before == {
        *("repetition.parquet", "repetition.csv", AGAIN)
    }
    table = pl.read_parquet(folder / "repetition.parquet")
    assert table.filter(column="mean")["max_difference"][0] == pytest.approx(0.25)
    others = table.filter(pl.col("column") != "mean")
    assert others["shown_differently"].sum() == 0 and others["numbers"].sum() > 0
    section = page(published).split("## 2. Equal budgets")[1].split("\n## ")[0]
    assert "Run a second time" in section and "| policies: mean |" in section


def test_the_published_run_is_not_its_own_repetition(finished: Path, published: Path) -> None:
    with pytest.raises(UserError, match="is not a second run of it; make one in another"):
        export_repetition(finished / "equal_budgets", "equal_budgets", published)


def test_a_repetition_of_what_is_not_published_is_refused(
    finished: Path, published: Path, tmp_path: Path
) -> None:
    again = second_run(finished, tmp_path / "again", "2999-01-01T00:00:00+00:00", 0.0)
    with pytest.raises(UserError, match="next_checks is not published with smollm2-135m"):
        export_repetition(again, "next_checks", published)


def test_what_is_published_has_times(published: Path) -> None:
    facts = json.loads((published / "equal_budgets" / SMOLLM2 / FACTS).read_text("utf-8"))
    assert facts["first_started"] is None or facts["first_started"] <= facts["first_made"]
