"""The page says what the tables say, and the committed one is what the committed tables give."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from kvfidelity.analysis.claims import read_claims
from kvfidelity.findings import advice, sentences
from kvfidelity.findings.content import QUESTIONS
from kvfidelity.findings.drawings import draw
from kvfidelity.findings.exported import OF_QUESTION
from kvfidelity.findings.minutes import (
    gpu_minutes,
    minutes_of_models,
    minutes_text,
    other_minutes,
)
from kvfidelity.findings.open_answers import OPEN, open_answers, training_changes
from kvfidelity.findings.page import COPY, page
from kvfidelity.findings.plan import MODELS, finding_named
from kvfidelity.findings.published import PublishedRun, published_runs
from kvfidelity.findings.repeats import SAME, repetitions
from kvfidelity.findings.sources import MODES, RECALL, Source, sources
from kvfidelity.findings.verdicts import GROUPS, NOT_MEASURED, verdict, verdict_tables
from kvfidelity.findings.wording import number
from kvfidelity.pipeline.settings import read_settings

ROOT = Path(__file__).parents[2]
COMMITTED = ROOT / "docs/findings"


def test_the_committed_page_is_what_the_committed_tables_give() -> None:
    assert page(COMMITTED) == (ROOT / "docs/findings.md").read_text("utf-8")


def test_the_readme_opens_with_numbers_of_the_committed_tables() -> None:
    readme = (ROOT / "README.md").read_text("utf-8")
    shown = " ".join(readme.split())
    runs = published_runs(COMMITTED)
    first, *others = sources(runs, MODES, "policies")
    opening = shown.split("docs/findings.md")[0]
    assert all(sentences.opening(source) in opening for source in (first, *others))
    figure = f"docs/findings/{first.run.finding.name}/{first.run.model}/modes.svg"
    assert re.findall(r"\]\(([^)]*\.svg)\)", readme)[0] == figure
    assert first.run.facts["hardware"][0].removesuffix(" with MPS").split()[-1] in opening
    for source in sources(runs, RECALL, "leaderboard"):
        pick = advice.chosen(source, source.thresholds[0])
        assert pick is not None and f"`{pick['policy']}` for {source.run.name}" in opening
    (locomo,) = (
        Source(run, advice.LOCOMO[1:])
        for run in runs
        if run.finding.name == advice.LOCOMO[0] and run.model == MODELS[1]
    )
    row = advice.chosen(locomo, locomo.thresholds[0])
    assert row is not None and f"`{row['policy']}` for {locomo.run.name}, which" in opening
    assert "on LoCoMo too" in opening
    (own,) = (
        run for run in runs if run.finding.name == "paper_own" and run.model == locomo.run.model
    )
    assert f"this model's {sentences.own_scores(own)}" in opening
    (trained,) = (
        run for run in runs if run.finding.name == "question2" and run.model == first.run.model
    )
    gained, lost, _ = training_changes(trained)
    assert (
        f"cost {trained.name} {lost}, and training on evicted states changes that by {gained}"
        in (opening)
    )


def test_a_run_with_a_model_file_of_elsewhere_had_the_weights_of_the_one_here() -> None:
    text = (ROOT / "docs/findings.md").read_text("utf-8")
    runs = published_runs(COMMITTED)
    found = [run for run in runs if f" {run.model}.yaml" in run.facts["command"]]
    assert text.count(COPY) == len(found)
    for run in found:
        entry = read_settings([ROOT / file for file in run.finding.files(run.model)])["models"]
        here = entry[run.model]
        assert run.facts["weights_sha256"] == (here.get("member_sha256") or here["sha256"])


def test_each_figure_and_table_of_the_committed_page_is_there() -> None:
    text = (ROOT / "docs/findings.md").read_text("utf-8")
    for target in re.findall(r"\]\((findings/[^)]*)\)", text):
        assert (ROOT / "docs" / target).exists(), target
    drawn = {path.relative_to(ROOT / "docs").as_posix() for path in COMMITTED.rglob("*.svg")}
    assert drawn == set(re.findall(r"\((findings/[^)]*\.svg)\)", text))


def test_without_a_run_everything_is_not_measured_yet(tmp_path: Path) -> None:
    text = page(tmp_path)
    for question in QUESTIONS:
        section = text.split(f"## {question.title}\n")[1].split("\n## ")[0]
        assert "Not measured yet." in section
    assert text.count("Not measured yet") == 5 + len(OPEN) + 1 + len(QUESTIONS)
    assert "was **not run**" in text
    for claim in read_claims(ROOT / "config/claims.yaml"):
        row = next(line for line in text.splitlines() if line.startswith(f"| {claim.claim} |"))
        assert row.count("not measured") == 2, claim.claim
        assert not re.search(r"[+\N{MINUS SIGN}]\d", row.split("|")[3]), claim.claim


def test_each_question_has_a_section() -> None:
    assert [question.key for question in QUESTIONS] == list(OF_QUESTION)


def test_a_published_run_is_in_the_page_with_its_numbers(docs: Path) -> None:
    text = page(docs)
    runs = {run.finding.name: run for run in published_runs(docs)}
    policies = runs["equal_budgets"].tables["policies"]
    for row in policies.to_dicts():
        assert number(row) in text
    assert "synthetic numbers" in text and "snakemake --cores 1" in text
    assert "2 dialogues of made; 128 runs of one dialogue" in text
    assert "None" not in text and "nan" not in text.lower().replace("finance", "")


def test_its_figures_are_drawn(docs: Path, tmp_path: Path) -> None:
    for run in published_runs(docs):
        (tmp_path / run.finding.name).mkdir()
        files = draw(replace(run, folder=tmp_path / run.finding.name))
        assert files and all(b"<svg" in file.read_bytes()[:200] for file in files)


@pytest.mark.parametrize("finding", ["locomo", "through_window"])
def test_a_figure_drawn_again_is_the_same_file(tmp_path: Path, finding: str) -> None:
    """Of tables whose rows polars may group in any order, as it runs on several threads."""
    run = next(one for one in published_runs(COMMITTED) if one.finding.name == finding)
    contents = set()
    for attempt in range(5):
        (tmp_path / str(attempt)).mkdir()
        files = draw(replace(run, folder=tmp_path / str(attempt)))
        contents.add(b"".join(file.read_bytes() for file in files))
    assert len(contents) == 1


def run_with(docs: Path, finding: str, **tables: pl.DataFrame) -> PublishedRun:
    """A published run with some of its tables changed."""
    (run,) = (run for run in published_runs(docs) if run.finding.name == finding)
    return replace(run, tables={**run.tables, **tables})


def losing(rows: pl.DataFrame, **means: tuple[float, float, float]) -> pl.DataFrame:
    """Rows whose mean, low and high are replaced, by POLICY__POSITIONS."""
    for key, values in means.items():
        policy, positions = key.split("__")
        chosen = (pl.col("policy") == policy) & (pl.col("positions") == positions)
        for name, value in zip(("mean", "low", "high"), values, strict=True):
            rows = rows.with_columns(pl.when(chosen).then(value).otherwise(name).alias(name))
    return rows


def test_each_arm_of_a_training_has_a_row_in_each_of_its_cells(docs: Path) -> None:
    (run,) = (run for run in published_runs(docs) if run.finding.name == "question2")
    section = page(docs).split("## 6. Open question 2")[1].split("\n## ")[0]
    text = section.split("\n### ")[1]
    rows = run.tables["finetuning"]
    assert set(rows["arm"]) == {"control", "stale", "rerotated", "skips", "none"}
    cells = rows.filter(measure="reference_nll").select("policy", "threshold", "positions", "arm")
    for cell in cells.unique().iter_rows():
        assert text.count(f"\n| {' | '.join(cell)} | ") == 2 - (cell[-1] == "none"), cell
    row = rows.filter(
        policy="attention_top_99", positions="stale", arm="stale", measure="reference_nll"
    ).filter(against="control")
    assert number({"mean": row["difference"][0], **row.row(0, named=True)}) in text
    whole = read_settings([ROOT / file for file in run.finding.files(run.model)])
    trained = sum("adapter" in entry for entry in whole["models"].values())
    assert f"made; {trained} trainings; {run.facts['runs']} runs of one dialogue" in text
    assert f"{run.facts['turns']} turns" in text and run.facts["model"] == run.model


@pytest.mark.parametrize(
    ("stale", "corrected", "said"),
    [
        (
            (5.0, 4.0, 6.0),
            (0.1, 0.0, 0.2),
            "most of it due to positions, for with corrected ones it costs +0.10",
        ),
        ((5.0, 4.0, 6.0), (4.0, 3.0, 5.0), "less than half of it due to positions"),
        ((5.0, -0.1, 10.1), (0.1, 0.0, 0.2), "which is not surely a loss"),
    ],
)
def test_what_the_papers_setting_loses_is_said_as_the_table_has_it(
    docs: Path, stale: tuple[float, ...], corrected: tuple[float, ...], said: str
) -> None:
    rows = run_with(docs, "paper_reference").tables["policies"]
    changed: Any = {"attention_top_99__stale": stale, "attention_top_99__rerotated": corrected}
    text = sentences.paper(run_with(docs, "paper_reference", policies=losing(rows, **changed)))
    row = dict(zip(("mean", "low", "high"), stale, strict=True)) | {"n_dialogues": 2}
    assert said in text and f"costs {number(row)} nats" in text


def test_the_count_of_worse_policies_follows_the_table(docs: Path) -> None:
    rows = run_with(docs, "equal_budgets").tables["policies"]
    for mean, count in ((-9.0, 9), (9.0, 0)):
        changed = losing(rows, gist__stale=(mean, mean, mean))
        run = run_with(docs, "equal_budgets", policies=changed)
        text = sentences.budgets(Source(run, MODES["equal_budgets"]))
        assert f"with stale positions {count} of 9 other policies lose more" in text


@pytest.mark.parametrize(
    ("low", "high", "said"),
    [(0.1, 0.3, "get less likely"), (-0.3, -0.1, "get likelier"), (-0.1, 0.3, "no change is sure")],
)
def test_the_window_is_said_to_hurt_only_if_it_does(
    docs: Path, low: float, high: float, said: str
) -> None:
    changes = pl.DataFrame(
        {"change": ["nll_change_beyond_window"], "mean": [(low + high) / 2], "low": [low]}
        | {"high": [high], "n_dialogues": [12], "n_runs": [12]}
    )
    assert said in sentences.window(run_with(docs, "equal_budgets", window_changes=changes))


def test_the_recommended_policy_forgets_least_of_those_that_lose_little(docs: Path) -> None:
    rows = run_with(docs, "equal_budgets").tables["leaderboard"]
    losses = {"h2o": 0.0, "snapkv": 0.04, "keydiff": 0.2}
    forgets = {"h2o": 0.5, "snapkv": 0.1, "keydiff": -0.3}
    table = rows.with_columns(
        mean=pl.col("policy").replace_strict(losses, default=1.0),
        margin_lost=pl.col("policy").replace_strict(forgets, default=0.0),
    )
    run = run_with(docs, "equal_budgets", leaderboard=table)
    # What is kept is that of the runs, which are made up.
    assert "`snapkv` with 250 and with 250 of 5,600 tokens kept" in advice.sentence([run])
    assert "fewer than a billion parameters" in advice.sentence([run])


def test_the_recommendation_says_what_the_least_loss_costs_and_what_locomo_says(
    docs: Path,
) -> None:
    rows = run_with(docs, "equal_budgets").tables["leaderboard"]
    asked = pl.col("policy") == "snapkv"
    table = rows.with_columns(
        mean=pl.col("policy").replace_strict({"h2o": 0.0, "snapkv": 0.04}, default=1.0),
        margin_lost=pl.when(asked).then(0.1).otherwise(1.5),
        margin_lost_low=pl.when(asked).then(0.0).otherwise(1.0),
        margin_lost_high=pl.when(asked).then(0.2).otherwise(2.0),
    )
    run = run_with(docs, "equal_budgets", leaderboard=table)
    said = "\n".join(advice.section([run]))
    assert "`h2o` loses least" in said and "but forgets more: margin lost +1.50" in said
    assert "overlap, so the choice" not in said
    assert f"- {run.name}: {NOT_MEASURED}." in said
    locomo = replace(run, finding=finding_named("locomo"))
    assert "yes, `snapkv`, of 10 policies" in "\n".join(advice.section([run, locomo]))
    for change, words in (
        (table.with_columns(mean=pl.when(asked).then(9.0).otherwise("mean")), "no, `h2o`, not"),
        (table.filter(~asked), "not tested, for `snapkv` was not run there; it names `h2o`"),
    ):
        other = replace(locomo, tables={**locomo.tables, "leaderboard": change})
        assert words in "\n".join(advice.section([run, other]))


def test_the_open_questions_are_answered_from_the_tables(docs: Path) -> None:
    runs = published_runs(docs)
    answers = dict(zip((key for key, _, _ in OPEN), open_answers(runs), strict=True))
    assert answers["question1"].endswith("Not measured yet.")
    (run,) = (run for run in runs if run.finding.name == "question2")
    rows = run.tables["finetuning"].filter(
        measure="reference_nll", policy="attention_top_99", positions="stale"
    )
    for arm, against, mode in (
        ("stale", "control", "stale"),
        ("none", "none", "rerotated"),
        ("stale", "none", "rerotated"),
    ):
        (row,) = rows.filter(arm=arm, against=against, against_positions=mode).to_dicts()
        assert number(row | {"mean": row["difference"]}) in answers["question2"]
    healings = next(run for run in runs if run.finding.name == "question4").tables["healings"]
    again = healings.filter(healing="refresh").drop_nulls("p_holm").height
    assert f"of {again} cells" in answers["question4"] or not again
    text = page(docs)
    for answer in answers.values():
        assert answer.splitlines()[-1].strip() in text


def test_a_penalty_is_told_with_what_it_leaves_and_the_worst_group_is_the_worst() -> None:
    runs = [run for run in published_runs(COMMITTED) if run.finding.name == "disruption"]
    assert len(runs) == len(MODELS)
    said = open_answers(runs)[2]
    for run in runs:
        fitted = run.tables["predictor_validation"].filter(metric="disruption_fitted", cells="only")
        row = fitted.filter(correlation=fitted["correlation"].min()).row(0, named=True)
        assert f"({row['factor']} {row['group']})" in said
        for penalty in run.tables["penalties"].to_dicts():
            assert f"{number(penalty)} with {penalty['positions']} positions" in said
        policies = run.tables["policies"].filter(threshold="turn")
        for policy, mode in (("penalty", "stale"), ("penalty_0", "rerotated")):
            (left,) = policies.filter(policy=policy, positions=mode).to_dicts()
            assert number(left) in said


def test_settings_are_said_in_words(docs: Path) -> None:
    text = page(docs)
    assert "- 99% kept by attention, at the trigger of the paper:\n  - Under stale" in text
    assert "of 5,600 tokens kept by `h2o`:\n  - Under stale" in text
    for name in ("attention_top_99, paper:", "tokens kept: ", "- made: "):
        assert name not in text.split("## 5. Open question 1")[1].split("## 9. ")[0], name


@pytest.mark.parametrize(("best", "word"), [("gist", "right"), ("h2o", "not the best")])
def test_the_beginning_alone_is_right_where_it_loses_least(
    docs: Path, best: str, word: str
) -> None:
    rows = run_with(docs, "equal_budgets").tables["policies"]
    changed: Any = {f"{best}__stale": (-9.0, -9.1, -8.9)}
    run = run_with(docs, "equal_budgets", policies=losing(rows, **changed))
    said = "\n".join(advice.section([run]))
    assert f"where positions stay stale it is {word}: of 9 other policies" in said
    named = "the beginning alone" if best == "gist" else f"`{best}`"
    assert f"{named} loses least" in advice.sentence([run])


def test_another_finding_stands_in_for_one_that_was_not_run(docs: Path) -> None:
    run = run_with(docs, "equal_budgets")
    instead = replace(run, finding=finding_named("disruption"))
    assert sources([instead, run], MODES, "policies") == [Source(run, ("2000tok",))]
    assert sources([instead], MODES, "policies") == [Source(instead, ("turn",))]
    other = replace(instead, model="another")
    assert [one.run.model for one in sources([run, other], MODES, "policies")] == [
        run.model,
        "another",
    ]


def test_cells_that_two_findings_share_are_compared(docs: Path) -> None:
    first = run_with(docs, "equal_budgets")
    renamed = first.tables["policies"].with_columns(
        policy=pl.col("policy").replace(SAME), mean=pl.col("mean") + 0.2
    )
    tables = {**first.tables, "policies": renamed}
    second = replace(first, finding=finding_named("next_checks"), tables=tables)
    assert list(repetitions(first, [first])) == []
    (said,) = repetitions(first, [first, second])
    assert "6 cells" in said and "differ by at most 2e-01 nats" in said
    assert list(repetitions(second, [first, second])) == []


def test_a_verdict_counts_the_cells_of_each_decision() -> None:
    rows = pl.DataFrame(
        {"decision": ["supported", "supported", "contradicted"], "estimate": [1.0, 2.0, -1.0]}
        | {"low": [0.5] * 3, "high": [2.5] * 3, "n_dialogues": [24] * 3}
    )
    assert verdict(rows[:1]) == "supported: +1.00 [+0.50, +2.50], 24 dialogues"
    assert verdict(rows) == (
        "supported in 2 of 3 cells (+1.00 to +2.00); "
        "contradicted in 1 of 3 cells (\N{MINUS SIGN}1.00)"
    )
    assert verdict(rows.clear(), "not asked") == "not asked"


def test_each_claim_and_question_has_a_verdict_or_says_that_it_was_not_measured(
    docs: Path,
) -> None:
    known = read_claims(ROOT / "config/claims.yaml")
    shown = "\n".join(verdict_tables(published_runs(docs), known))
    assert all(f"**{title}**" in shown for title in GROUPS.values())
    rows = {
        line.split("|")[1].strip(): line.split("|")[3:-1]
        for line in shown.splitlines()[1:]
        if line.startswith("| ")
    }
    assert {claim.claim for claim in known} | {"P5"} <= set(rows)
    assert {f"P{number}" for number in range(1, 8)} | {"C3", "C4b"} <= set(rows)
    for name, cells in rows.items():
        assert len(cells) == len(MODELS) and all(cell.strip() for cell in cells), name
    assert any(NOT_MEASURED not in cell for cell in rows["P1"])
    stranger = replace(known[0], source="somebody")
    with pytest.raises(ValueError, match=r"C1a.*'somebody'"):
        list(verdict_tables([], [stranger]))


@pytest.mark.parametrize(
    ("low", "high", "decision"),
    [(0.52, 0.6, "supported"), (0.3, 0.48, "contradicted"), (0.4, 0.6, "not decided")],
)
def test_p5_is_decided_from_the_predictors(
    docs: Path, low: float, high: float, decision: str
) -> None:
    rows = pl.DataFrame(
        {"metric": ["phase_distortion"], "correlation": [(low + high) / 2], "low": [low]}
        | {"high": [high], "n_dialogues": [23]}
    )
    run = run_with(docs, "equal_budgets", predictors=rows)
    (line,) = (
        line
        for text in verdict_tables([run], read_claims(ROOT / "config/claims.yaml"))
        for line in text.splitlines()
        if line.startswith("| P5 ")
    )
    assert line.split("|")[3].strip().startswith(decision)


def test_minutes_are_from_the_first_start_to_the_last_end_and_of_trainings(docs: Path) -> None:
    jobs = pl.DataFrame(
        {"rule": ["fetch_model", "generate", "finetune_model", "figures"]}
        | {"wall_s": [30.0, 9000.0, 120.0, 30.0], "wall_s_max": [30.0, 60.0, 120.0, 30.0]}
    )
    facts = {
        "first_started": "2026-01-01T10:00:00+00:00",
        "first_made": "2026-01-01T10:02:00+00:00",
    }
    facts |= {"last_made": "2026-01-01T10:10:00+00:00"}
    run = run_with(docs, "equal_budgets", jobs=jobs)
    recorded = replace(run, facts={**run.facts, **facts})
    assert gpu_minutes(recorded) == 10 + 2 and other_minutes(recorded) == 1
    # A training that is known to have started before the dialogues is within that time.
    started = {"first_training_started": "2026-01-01T09:59:00+00:00"}
    assert gpu_minutes(replace(recorded, facts=recorded.facts | started)) == 1 + 10
    # Without a start it is the end of the first dialogue less the longest one.
    bound = replace(run, facts={**run.facts, **facts, "first_started": None})
    assert gpu_minutes(bound) == 8 + 1 + 2
    assert gpu_minutes(replace(bound, tables={**run.tables, "jobs": jobs.clear()})) is None
    assert "| all, of 60 GPU minutes | 2 | 23.0 | 2.0 |" in minutes_of_models([recorded, bound])
    # On two GPUs the time between counts twice; other work on them makes it an upper bound.
    two = replace(recorded, facts={**recorded.facts, "command": "snakemake --resources gpu=2"})
    assert gpu_minutes(two) == 2 * 10 + 2
    busy = replace(recorded, facts={**recorded.facts, "shared": True})
    assert minutes_text(recorded, gpu_minutes) == "12.0"
    assert minutes_text(busy, gpu_minutes) == "at most 12.0"
    sums = minutes_of_models([recorded, busy])
    assert "| all, of 60 GPU minutes | 2 | at most 24.0 | at most 2.0 |" in sums
    assert "upper bound" not in sums and "upper bound" in minutes_of_models([busy] * 6)


def test_a_sentence_of_two_models_is_two_sentences(docs: Path) -> None:
    one = run_with(docs, "paper_reference")
    two = replace(one, model=MODELS[1])
    said = sentences.five([one, two])[0].splitlines()
    assert said[0] == "**The paper's setting.**"
    assert [line.startswith("   - ") and line.endswith(".") for line in said[1:]] == [True, True]


def test_locomos_section_has_sentences_and_recall_by_depth(docs: Path) -> None:
    run = run_with(docs, "equal_budgets")
    checks = next(question for question in QUESTIONS if question.key == "checks")
    locomo = replace(run, finding=finding_named("locomo"))
    assert len(checks.answers(locomo)) == 2
    assert [caption for caption, _, _ in checks.tables(locomo)][-1] == "Right answers by depth"


def test_own_replies_are_said_as_the_tables_have_them(docs: Path, tmp_path: Path) -> None:
    place = {"model": "synthetic", "dataset": "d", "n_dialogues": 2}
    cells = (
        ("baseline", "original", "none", None, 0.95, 0.1),
        ("attention_top_99", "stale", "5600tok", 1.5, 0.25, 0.6),
        ("gist_2000", "stale", "5600tok", 0.25, 0.9, 0.2),
    )
    replies = pl.DataFrame(
        [
            place
            | {"policy": policy, "positions": positions, "threshold": threshold, "n": 20}
            | {"complete": complete, "rep_3": repeated, "echo_share": 0.5, "chrf": 0.5}
            | {"lost": lost, "lost_low": lost and lost - 0.1, "lost_high": lost and lost + 0.1}
            | {"mean": 1.0, "low": 1.0, "high": 1.0, "n_pairs": 20}
            for policy, positions, threshold, lost, complete, repeated in cells
        ]
    )
    scores = replies.select("policy", "positions", "threshold", "n").with_columns(
        judge=pl.lit("formula"),
        mean=3.75,
        difference_low=pl.when(policy="gist_2000").then(-2.0),
        difference_high=pl.when(policy="gist_2000").then(-1.0),
    )
    run = run_with(docs, "paper_reference", own_replies=replies, verdict_means=scores)
    own = replace(run, finding=finding_named("paper_own"), folder=tmp_path)
    said = next(question for question in QUESTIONS if question.key == "paper").answers(own)
    assert said == [
        "Nothing evicted: 95% of 20 replies come to their end, 10% of their runs of three words "
        "are repeated, judge `formula` gives 3.75 of 10.",
        "99% by attention, stale positions: 25% of 20 replies come to their end, 60% of their "
        "runs of three words are repeated, judge `formula` gives 3.75 of 10, NLL lost +1.50 "
        "[+1.40, +1.60] nats per token.",
        "The first 2,000 tokens alone: 90% of 20 replies come to their end, 20% of their runs of "
        "three words are repeated, judge `formula` gives 3.75 of 10, NLL lost +0.25 [+0.15, "
        "+0.35] nats per token.",
    ]
    assert sentences.own_scores(own) == "", "corrected positions are missing"
    corrected = scores.filter(policy="attention_top_99").with_columns(
        positions=pl.lit("rerotated"), mean=pl.lit(7.25)
    )
    whole = replace(own, tables=own.tables | {"verdict_means": pl.concat([scores, corrected])})
    (setting, *_) = sentences.five([run, whole])
    assert (
        "own replies get 3.75 of 10 from the formula judge with nothing evicted, 3.75 with 99% by "
        "attention and stale positions, 7.25 with corrected ones, and 3.75 with only the first "
        "2,000 tokens, where 1 of the 3 differences from nothing evicted is sure" in setting
    )
    (file,) = draw(own)
    assert file.name == "own.svg" and b"<svg" in file.read_bytes()[:200]
