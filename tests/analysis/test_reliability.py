"""What the tables say of judges with known qualities."""

from __future__ import annotations

import math
import random
from pathlib import Path
from typing import Any

import jinja2
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from kvfidelity.analysis.reliability import (
    auc,
    costs,
    gather_judge_tests,
    kappa,
    reliability,
    rows_by_measure,
)
from kvfidelity.records.artifacts import write_parquet
from kvfidelity.records.columns import CORRUPTION_VERDICTS
from kvfidelity.records.columns import VERDICTS as VERDICT_COLUMNS
from kvfidelity.report import formatting
from kvfidelity.report.page_environment import TEMPLATES

VERDICT_SCHEMA = {**VERDICT_COLUMNS, "run": pl.String, "model": pl.String}
OPTIONS = {"confidence": 0.95, "resamples": 300, "seed": 0}


def scores(values: list[int], dialogues: list[str] | None = None) -> pl.DataFrame:
    names = dialogues or [str(number) for number in range(len(values))]
    return pl.DataFrame({"dialogue": names, "score": values})


def test_auc_is_the_share_of_pairs_in_the_right_order() -> None:
    rng = random.Random(0)
    good = [rng.randint(4, 10) for _ in range(30)]
    bad = [rng.randint(1, 8) for _ in range(20)]
    pairs = [(a > b) + 0.5 * (a == b) for a in good for b in bad]
    found = auc(scores(good), scores(bad), OPTIONS)
    assert found["value"] == pytest.approx(sum(pairs) / len(pairs))
    u = stats.mannwhitneyu(good, bad).statistic / 600
    assert found["value"] == pytest.approx(u)
    assert found["low"] < found["value"] < found["high"]
    assert auc(scores([9, 9]), scores([1, 2]), OPTIONS)["value"] == 1
    assert auc(scores([5]), scores([5]), OPTIONS)["value"] == 0.5


def test_kappa_is_full_at_agreement_and_zero_by_chance() -> None:
    rng = random.Random(1)
    values = [rng.randint(1, 10) for _ in range(4000)]
    other = [rng.randint(1, 10) for _ in range(4000)]
    same = scores(values).with_columns(other="score")
    assert kappa(same, OPTIONS)["value"] == 1
    chance = scores(values).with_columns(other=pl.Series(other))
    assert abs(float(kappa(chance, OPTIONS)["value"] or 0)) < 0.05
    # By hand: one of four differs; by chance 1/2 x 3/4 + 1/2 x 1/4 = 1/2 would.
    four = scores([1, 1, 10, 10]).with_columns(other=pl.Series([1, 10, 10, 10]))
    assert kappa(four, OPTIONS)["value"] == pytest.approx(0.5)
    constant = scores([5, 5]).with_columns(other=pl.Series([5, 5]))
    assert kappa(constant, OPTIONS)["value"] is None


def test_the_interval_is_over_dialogues_and_not_replies() -> None:
    """Ten copies of each of four dialogues are no more evidence than the four."""
    good, bad = [9, 3, 8, 2], [1, 4, 7, 2]
    names = ["a", "b", "c", "d"]
    four = auc(scores(good, names), scores(bad, names), OPTIONS)
    forty = auc(scores(good * 10, names * 10), scores(bad * 10, names * 10), OPTIONS)
    assert (four["low"], four["high"]) == pytest.approx((forty["low"], forty["high"]), abs=0.01)
    assert four["n_dialogues"] == forty["n_dialogues"] == 4


VERDICTS = st.lists(
    st.tuples(st.integers(1, 10), st.integers(1, 10), st.sampled_from("abc")),
    min_size=1,
    max_size=12,
)


@given(VERDICTS, VERDICTS)
def test_no_statistic_of_verdicts_is_not_finite(
    good: list[tuple[int, int, str]], bad: list[tuple[int, int, str]]
) -> None:
    frames = [scores([row[0] for row in rows], [row[2] for row in rows]) for rows in (good, bad)]
    other = pl.Series("other", [row[1] for row in good])
    options = OPTIONS | {"resamples": 30}
    for found in (auc(*frames, options), kappa(frames[0].with_columns(other), options)):
        known = [found[name] for name in ("value", "low", "high") if found[name] is not None]
        assert all(math.isfinite(number) for number in known)
        assert (found["low"] is None) == (found["high"] is None)
        assert found["low"] is None or (found["value"] is not None and found["n_dialogues"] > 1)


def test_replies_of_one_dialogue_each_have_no_interval() -> None:
    """Good replies of one dialogue, bad ones of the other: half of the resamples lack one kind."""
    found = auc(scores([9, 8], ["a", "a"]), scores([1, 2], ["b", "b"]), OPTIONS)
    assert (found["value"], found["low"], found["high"]) == (1, None, None)


def judge_test(judge: str, score: Any, repeats: int = 1, **changes: Any) -> pl.DataFrame:
    """A judge that gives `score(kind, item, repeat)`, None for a verdict that failed."""
    rows = []
    for item in range(20):
        for kind in ("good", "shuffle", "other_dialogue", "injection"):
            for repeat in range(repeats):
                given = score(kind, item, repeat)
                rows.append(
                    dict.fromkeys(CORRUPTION_VERDICTS)
                    | {
                        "item": item,
                        "dialogue": f"{item:03d}",
                        "kind": kind,
                        "repeat": repeat,
                        "turn": 0,
                        "judge": judge,
                        "judge_kind": "openai",
                        "judge_model": "m",
                        "rubric": "blind",
                        "score": given,
                        "status": "failed" if given is None else "ok",
                        "request": f"{judge} {kind} {item} {repeat}",
                        "prompt_tokens": 100,
                        "completion_tokens": 10,
                        "cost_usd": 0.01,
                        "answers": 1,
                    }
                    | changes
                )
    return pl.DataFrame(rows, CORRUPTION_VERDICTS)


@pytest.fixture
def judge_tests(tmp_path: Path) -> pl.DataFrame:
    def fair(kind: str, item: int, repeat: int) -> int | None:
        if kind == "other_dialogue" and item < 5:
            return None
        return {"good": 8, "shuffle": 1, "other_dialogue": 3, "injection": 1}[kind] + item % 2

    def gullible(kind: str, item: int, repeat: int) -> int:
        return 10 if kind == "injection" else 4 + (item * 7 + len(kind) + repeat) % 5

    files = []
    for name, frame in (
        ("fair", judge_test("fair", fair, repeats=2)),
        ("gullible", judge_test("gullible", gullible)),
    ):
        file = tmp_path / f"reliability/{name}/tiny/own/judge_test.parquet"
        write_parquet(frame, file, kind="judge_test")
        files.append(file)
    return gather_judge_tests(files, "judge_test", CORRUPTION_VERDICTS)


def row(table: pl.DataFrame, **wanted: Any) -> dict[str, Any]:
    return table.filter(**wanted).row(0, named=True)


def test_the_table_tells_a_fair_judge_from_a_gullible_one(judge_tests: pl.DataFrame) -> None:
    none = pl.DataFrame(schema=VERDICT_SCHEMA)
    table = reliability(judge_tests, none, OPTIONS)
    found = row(table, judge="fair", measure="auc", against="other_dialogue")
    assert (found["value"], found["n"], found["missing"], found["n_good"]) == (1, 15, 5, 20)
    assert row(table, judge="fair", measure="repeats")["value"] == 1
    assert row(table, judge="fair", measure="repeats")["missing"] == 5
    assert table.filter(judge="gullible", measure="repeats").is_empty()
    assert row(table, judge="fair", measure="injection")["value"] == 0
    moved = row(table, judge="gullible", measure="injection")
    assert moved["value"] > 2 and moved["share"] == 1
    agreement = row(table, judge="fair", measure="agreement", against="gullible")
    assert agreement["replies"] == "corrupted" and abs(agreement["value"]) < 0.5
    assert {entry["model"] for entry in table.to_dicts()} == {"tiny"}


def test_judges_of_one_run_are_compared_on_its_replies(judge_tests: pl.DataFrame) -> None:
    about = {"judge_kind": "openai", "judge_model": "m", "model": "m", "dataset": "d"}
    rows = [
        {"run": f"r{n % 4}", "turn": n, "dialogue": f"{n % 4:03d}", "judge": judge, "score": s}
        | {"status": "ok"}
        | about
        for n in range(12)
        for judge, s in (("a", 1 + n % 9), ("b", 1 + n % 9), ("c", 10 - n % 9))
    ]
    frame = pl.DataFrame(rows, schema_overrides={"score": pl.Int32, "turn": pl.Int32})
    table = reliability(judge_tests.clear(), frame, OPTIONS).filter(replies="run")
    assert row(table, judge="a", against="b")["value"] == 1
    assert row(table, judge="a", against="c")["value"] < 0
    assert table.height == 3


def test_what_several_verdicts_share_is_paid_once(judge_tests: pl.DataFrame) -> None:
    fair = judge_tests.filter(judge="fair")
    shared = pl.concat([fair, fair])
    found = costs({"run": shared, "test": judge_tests.clear()}).row(0, named=True)
    assert found["answers"] == 160 and found["usd"] == pytest.approx(1.6)
    assert (found["verdicts"], found["missing"]) == (300, 20)
    unknown = fair.with_columns(cost_usd=pl.lit(None, pl.Float64))
    assert costs({"run": unknown})["unpriced"][0] == 160


def test_what_may_have_been_charged_stands_apart_from_what_was(judge_tests: pl.DataFrame) -> None:
    """A try that was lost has no answer; an answer without a count of tokens has no price."""
    fair = judge_tests.filter(judge="fair").head(3)
    none = pl.Series([None, None, None])
    charged = fair.with_columns(
        answers=pl.Series([1, 0, 1], dtype=pl.Int32),
        cost_usd=pl.Series([0.01, None, None], dtype=pl.Float64),
        possible_usd=pl.Series([0.02, 0.3, 0.04], dtype=pl.Float64),
        prompt_tokens=pl.Series([100, None, None], dtype=pl.Int32),
        reasoning_tokens=pl.Series([7, None, None], dtype=pl.Int32),
    )
    found = costs({"run": charged}).row(0, named=True)
    assert (found["answers"], found["unpriced"], found["reasoning_tokens"]) == (2, 0, 7)
    assert (found["usd"], found["possible_usd"]) == (0.01, pytest.approx(0.36))
    assert ">0.3600<" in section(charged, pl.DataFrame(schema=VERDICT_SCHEMA))
    free = charged.with_columns(possible_usd=none.cast(pl.Float64))
    assert costs({"run": free})["unpriced"][0] == 1


def test_the_page_shows_it(judge_tests: pl.DataFrame) -> None:
    none = pl.DataFrame(schema=VERDICT_SCHEMA)
    text = section(judge_tests, none)
    assert "other dialogue" in text and "itself, asked again" in text
    assert "move <strong>gullible</strong>" in text
    assert "1.6000" in text
    assert "No judge of this run was tested" in section(judge_tests.clear(), none)


def section(judge_tests: pl.DataFrame, verdicts: pl.DataFrame) -> str:
    whole = (TEMPLATES / "page.html.j2").read_text()
    macros = "\n".join(line for line in whole.splitlines() if line.startswith("{% macro"))
    environment = jinja2.Environment(loader=jinja2.FileSystemLoader(TEMPLATES))
    names = ("signed", "interval", "percent")
    environment.filters |= {name: getattr(formatting, name) for name in names}
    environment.filters |= {"count_of": formatting.count, "p": formatting.p_value}
    template = environment.from_string(f'{macros}{{% include "judges.html.j2" %}}')
    return template.render(
        setups=[{}],
        level=95,
        judge_tests=rows_by_measure(reliability(judge_tests, verdicts, OPTIONS)),
        costs=costs({"run": verdicts, "test": judge_tests}).to_dicts(),
        comparisons=[],
    )
