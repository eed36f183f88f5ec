"""What the page says, and the files next to it."""

from __future__ import annotations

import html
import json
import re
from pathlib import Path

import polars as pl
import yaml

from kvfidelity.report.figure_registry import FIGURES
from tests.analysis.synthetic import settings


def test_it_is_one_file_that_asks_nothing_of_a_network(page: Path, text: str) -> None:
    assert page.stat().st_size < 15e6
    without_names = re.sub(r'xmlns(:\w+)?="[^"]*"', "", text)
    assert not re.search(r"(src|href)\s*=\s*[\"']?(https?:)?//", without_names)
    assert "@import" not in text
    assert "url(http" not in text


def words(text: str, start: str, end: str) -> str:
    """What a person reads of a part of the page, figures aside."""
    part = text[text.index(start) : text.index(end)]
    bare = re.sub(r"<(svg|script|style)\b.*?</\1>", " ", part, flags=re.DOTALL)
    return html.unescape(re.sub(r"\s+", " ", re.sub("<[^>]+>", " ", bare)))


def test_the_first_words_answer(text: str) -> None:
    answer = words(text, 'id="answer"', 'id="contents"')
    assert "attention_top fails because of positions" in answer
    assert "synthetic numbers" in text[: text.index('id="answer"')]


def test_the_ranking_names_what_loses_least(page: Path, text: str) -> None:
    ranking = pl.read_csv(page.parent / "tables/ranking.csv")
    best = ranking.filter(rank=1).row(0, named=True)
    answer = words(text, 'id="answer"', 'id="contents"')
    assert f"At {best['budget_tokens']} cached tokens, " in answer
    assert f"{best['policy']}, {best['positions']} loses least" in answer
    assert f"saves {best['bytes_saved_share']:.0%} of the baseline’s cache" in answer
    shown = re.findall(
        r"(attention_top|gist|streaming_llm) (stale|original|rerotated) [+−0]", answer
    )
    assert shown == list(zip(ranking["policy"], ranking["positions"], strict=True))


def test_a_reader_who_asks_for_another_budget_is_told_the_nearest(page: Path, text: str) -> None:
    budgets = pl.read_csv(page.parent / "tables/ranking.csv")["budget_tokens"].drop_nulls().unique()
    [budget] = budgets
    assert budget != 512
    answer = words(text, 'id="answer"', 'id="contents"')
    assert f"Budgets that were run: {budget:,} slots. No run holds 512 slots; nearest: " in answer
    assert f"nearest: {budget:,}." in answer
    assert 'make run CONFIG="config/config.yaml slots.yaml"' in answer
    [entry] = re.findall(r"Write (thresholds: .*) to a file such as slots", answer)
    chosen = yaml.safe_load(entry)["thresholds"]
    assert chosen["slots512"]["target"] == "512tok"
    assert "slots512" in settings(20, thresholds=chosen)["thresholds"], "it is accepted"


def test_slots_and_speed_of_the_ranking_are_the_tables(page: Path, text: str) -> None:
    """Where nothing was timed, the page says why and how to time it."""
    ranking = pl.read_csv(page.parent / "tables/ranking.csv")
    answer = words(text, 'id="answer"', 'id="contents"')
    for row in ranking.to_dicts():
        shown = f"{row['cached_slots']:,.0f} {row['bytes_saved_share']:.0%}"
        assert f" {shown} " in answer
    untimed = ranking["n_timed"].sum() == 0
    assert ("Why tokens per second were not timed" in answer) == untimed
    assert ("not timed" in answer) == (ranking["n_timed"].min() == 0)


def test_the_first_lines_name_the_machine_and_the_day(page: Path, text: str) -> None:
    environments = pl.read_csv(page.parent / "tables/environments.csv")
    head = words(text, "<header>", 'id="answer"')
    for name in environments["hardware"].drop_nulls().unique():
        assert name in head
    for moment in environments["last_made"].drop_nulls().unique():
        assert moment[:10] in head


def test_runs_of_more_than_one_environment_are_warned_of(text: str) -> None:
    part = words(text, 'id="environments"', 'id="cells-head"')
    assert "Warning: the runs of synthetic were made in more than one environment" in part
    assert part.count("torch 1.13.1") == 1


def test_terms_are_defined_with_a_drawing(text: str) -> None:
    part = words(text, 'id="terms"', 'id="causes"')
    assert "stale 0 1 evicted evicted evicted 5 6 7 5" in part
    assert "original 0 1 evicted evicted evicted 5 6 7 8" in part
    assert "rerotated 0 1 evicted evicted evicted 2 3 4 5" in part
    assert 'class="n late">5<' in text and 'class="n late">2<' not in text
    assert "Keeps a few first slots, the attention sinks, and the last ones" in part


def test_what_was_run_is_told(page: Path, text: str) -> None:
    part = words(text, 'id="run"', 'id="cells-head"')
    turns = pl.read_parquet(page.parent / "tables/turns.parquet")
    late = turns.filter(pl.col("kind") != "baseline", "after_eviction").height
    assert f"of which {late} turns after an eviction" in part
    assert "snakemake --cores 2" in part
    assert "KV Fidelity 0.1.0" in part
    base = pl.read_csv(page.parent / "tables/baselines.csv").row(0, named=True)
    assert f"{base['mean']:.2f} [" in part and "perplexity" in part
    limit = turns.drop_nulls("threshold_tokens").row(0, named=True)
    size = limit["threshold_tokens"] * limit["token_bytes"] / 1e6
    assert f"half: at {limit['threshold_tokens']} tokens ({size:.2f} MB)" in part
    assert "kind: attention_top" in part


def test_depths_and_policies_have_different_names(text: str) -> None:
    """`gist` is a policy; what it keeps is the beginning."""
    part = words(text, 'id="recall"', 'id="cache"')
    assert re.search(r"\bearly\b", part)
    assert not re.search(r"\bgist (stale|rerotated|original) gist\b", part)
    assert "re-rotated" not in text


def test_both_sides_of_a_contrast_open(text: str) -> None:
    part = text[text.index('id="contrasts"') : text.index('id="verdicts"')]
    pairs = [
        json.loads(html.unescape(found)) for found in re.findall(r"data-cells='([^']*)'", part)
    ]
    assert pairs and all(len(pair) == 2 and pair[0] != pair[1] for pair in pairs)


def test_every_table_has_its_csv(page: Path, text: str) -> None:
    files = re.findall(r'href="((?:tables|figures)/[^"]+\.csv)"', text)
    assert len(set(files)) > 20
    for file in files:
        assert (page.parent / file).is_file(), file


def test_it_says_what_each_policy_forgets(text: str) -> None:
    part = re.sub(r"\s+", " ", text[text.index('id="recall"') : text.index('id="cache"')])
    gist = part[part.index("<strong>gist</strong>, whatever the positions") :]
    gist = re.sub("<[^>]+>", "", gist[: gist.index("</li>")])
    assert re.search(r"keeps the beginning \((\d+%) against \1\)", gist)
    assert re.search(r"forgets the middle \(\d\d% against \d\d%\), the latest", gist)
    assert "<strong>attention_top</strong>, original and rerotated" in part


def test_missing_verdicts_are_counted(text: str) -> None:
    found = re.search(r"formula: (\d+) verdicts missing, failed. By turn: (.+)\.</p>", text)
    assert found
    turns = re.findall(r"turn (\d+): (\d+) of (\d+)", found[2])
    assert [int(turn) for turn, _, _ in turns] == [4, 9, 14]
    assert all(missing == replies for _, missing, replies in turns)
    assert sum(int(missing) for _, missing, _ in turns) == int(found[1])
    # Every cell misses the same turns, so there is nothing to warn of.
    assert "Missing verdicts of" not in text


def test_the_reliability_of_judges_is_shown(text: str) -> None:
    section = re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", text[text.index('id="judges"') :]))
    assert "formula shuffle 1.00 [0.83, 1.00] 20 0" in section
    assert "formula other dialogue 1.00" in section
    assert "Words to the judge inside a reply" in section


def test_seconds_and_memory_of_the_jobs_are_shown(text: str) -> None:
    section = text[text.index('id="jobs"') : text.index('id="limits"')]
    seen_text = re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", section))
    assert "Runs computed together with others share their seconds: 1 of the jobs" in seen_text
    assert "aggregate its own processes 1 12.3 12.3 12.3 1,234 105" in seen_text
    assert "generate the model’s process 1 3.50 3.50 3.50 (shared) 7.00 (shared) 3.00" in seen_text


def test_figures_and_tables_for_papers(page: Path) -> None:
    results = page.parent
    for name in [figure.name for figure in FIGURES]:
        assert (results / f"figures/{name}.png").read_bytes().startswith(b"\x89PNG")
        alone = (results / f"figures/{name}.html").read_text()
        assert "vegaEmbed" in alone
        assert not re.search(r"<script[^>]+src=", alone)
    assert (results / "tables/policies.md").read_text().startswith("| model | dataset |")
    latex = (results / "tables/claims.tex").read_text()
    assert r"\toprule" in latex
    assert r"streaming\_llm" in latex
    assert "takes the cache past the threshold by more than 5\\%" in latex
