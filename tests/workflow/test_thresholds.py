"""A threshold that no dialogue reaches is said where dialogues are extracted, and on the page."""

from __future__ import annotations

import html
import json
import re
import shutil
from pathlib import Path

import pytest

from tests.workflow.project import Project


@pytest.mark.long(45)
def test_a_threshold_out_of_reach_is_said_first(prepared: Project, tmp_path: Path) -> None:
    project = prepared.copy(tmp_path / "project")
    shutil.rmtree(project.folder / "results")
    large = {"at": "4MB", "trigger": "turn", "target": "200tok"}
    project.configure({"thresholds": {"large": large}, "grid": {"positions": ["stale"]}})
    done = project.snakemake()
    assert done.returncode == 0, done.stdout + done.stderr
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
    first = re.search(r"<p>(.*?)</p>", answer, re.DOTALL)[1]
    text = html.unescape(re.sub(r"\s+", " ", re.sub("<[^>]+>", "", first)))
    found = re.search(r"the longest dialogue has ([\d,]+) tokens, the threshold is 7,812\.", text)
    assert text.startswith("Nothing was evicted at large")
    assert 600 < int(found[1].replace(",", "")) <= entry["longest"]
    project.reconfigure({"thresholds": {"large": {"at": "5MB"}}})
    rules = {rule for rule, _ in project.planned()}
    assert "generate" in rules and "extract_dialogues" not in rules


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
