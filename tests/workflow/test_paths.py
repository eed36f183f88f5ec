"""A project's folder may have any name; a folder of a similar name is never read. A threshold that
no dialogue reaches is said where dialogues are extracted, and on the page."""

from __future__ import annotations

import html
import json
import re
import shutil
from pathlib import Path

import polars as pl
import pytest

from tests.workflow.project import Project

#: A pattern that `exp1 & it's x` matches, with what a shell takes as its own.
NAME = "exp[1] & it's *"
LOCAL = "my [1] & own's"


def named(fresh: Project, folder: Path) -> Project:
    """A new project of that name, whose dialogues and model are in folders of such names, too."""
    project = fresh.copy(folder / NAME)
    local = project.folder / LOCAL
    local.mkdir()
    shutil.copy(project.folder / "resources/dialogues/own.jsonl", local / "own[2].jsonl")
    shutil.move(project.folder / "tiny", local / "tiny")
    project.configure(
        {
            "models": {"tiny": {"path": f"{LOCAL}/tiny"}},
            "datasets": {"own": {"path": f"{LOCAL}/own[2].jsonl"}},
        }
    )
    return project


@pytest.mark.long(50)
def test_a_run_in_a_folder_with_brackets_reads_its_own_files_and_says_what_is_out_of_reach(
    fresh: Project, finished: Project, tmp_path: Path
) -> None:
    """One whole run for both."""
    project = named(fresh, tmp_path)
    large = {"at": "4MB", "trigger": "turn", "target": "200tok"}
    project.reconfigure({"thresholds": {"large": large}, "grid": {"positions": ["stale"]}})
    # What a pattern would find instead.
    folder = tmp_path / "exp1 & it's x"
    shutil.copytree(finished.folder / "results", folder / "results")
    for file in (folder / "results").rglob("*.parquet"):
        file.write_bytes(b"another folder's")
    assert ("generate", "tiny/own/baseline/original/none/0/000") in project.planned()
    done = project.snakemake()
    assert done.returncode == 0, done.stdout + done.stderr
    reads_its_own_files(project, finished)
    says_what_is_out_of_reach(project)
    assert project.planned() == set()
    project.reconfigure({"thresholds": {"large": {"at": "5MB"}}})
    rules = {rule for rule, _ in project.planned()}
    assert "generate" in rules and "extract_dialogues" not in rules


def reads_its_own_files(project: Project, finished: Project) -> None:
    pool = "results/dialogues/tiny/own/pool.parquet"
    made, expected = project.digests(), finished.digests()
    runs = [name for name in made if name in expected and "/generate/" in name and "turns" in name]
    assert len(runs) == 3
    ids = [
        pl.read_parquet(p.folder / name, glob=False)["dialogue_id"].to_list()
        for p in (project, finished)
        for name in runs
    ]
    assert ids[: len(runs)] == ids[len(runs) :]
    assert made[pool] == expected[pool]


def says_what_is_out_of_reach(project: Project) -> None:
    """Where dialogues are extracted, and on the page."""
    manifest = json.loads((project.folder / "results/dialogues/tiny/own/manifest.json").read_text())
    # Of 2 x 2 layers x 2 heads x 16 x 4 bytes a token.
    [entry] = manifest["not_reached"]
    assert (entry["threshold"], entry["tokens"]) == ("large", 4_000_000 // 512)
    assert 600 < entry["longest"] < entry["tokens"]
    log = (project.folder / "logs/extract_dialogues/tiny/own.log").read_text()
    assert (
        f"threshold large: nothing will be evicted: the longest dialogue has at most "
        f"{entry['longest']:,} tokens, the threshold is 7,812"
    ) in log
    page = (project.folder / "results/report.html").read_text()
    answer = page[page.index('id="answer"') : page.index('id="claims"')]
    paragraphs = [
        html.unescape(re.sub(r"\s+", " ", re.sub("<[^>]+>", "", text)))
        for text in re.findall(r"<p>(.*?)</p>", answer, re.DOTALL)
    ]
    [text] = [text for text in paragraphs if text.startswith("Nothing was evicted")]
    assert text.startswith("Nothing was evicted at threshold large:")
    found = re.search(r"the longest dialogue has ([\d,]+) tokens, the threshold is 7,812\.", text)
    assert found and 600 < int(found[1].replace(",", "")) <= entry["longest"]


def test_a_folder_whose_name_snakemake_would_fill_in_is_refused(
    fresh: Project, tmp_path: Path
) -> None:
    done = fresh.copy(tmp_path / "{model}").snakemake("-n")
    assert done.returncode != 0
    assert "{model} has braces in its name" in done.stdout + done.stderr


def test_more_dialogues_than_pass_the_selection_are_refused_once(
    fresh: Project, tmp_path: Path
) -> None:
    project = fresh.copy(tmp_path / "project")
    project.configure({"datasets": {"own": {"count": 60}}})
    done = project.snakemake("--keep-going", "only_generate")
    output = done.stdout + done.stderr
    assert done.returncode != 0
    assert (
        len(re.findall(r"error: datasets\.own\.count is 60, but only \d+ dialogues", output)) == 1
    )
    assert "failed: generate" not in output and " runs] " not in output
    assert "Traceback" not in output
