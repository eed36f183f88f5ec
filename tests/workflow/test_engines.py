"""The rule that makes a model's probe set."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from kvfidelity.engine_check.answers import Answer, AnswerKind
from kvfidelity.engine_check.probes import read_probe_set
from kvfidelity.engine_check.verdict import judge
from tests.workflow.project import Project

TARGET = "results/probes/tiny.jsonl"
WINDOW = 512


@pytest.mark.long(30)
def test_a_probe_set_is_made_from_the_model_alone(fresh: Project, tmp_path: Path) -> None:
    project = fresh.copy(tmp_path / "project")
    file = project.folder / "tiny/config.json"
    config = json.loads(file.read_text())
    file.write_text(json.dumps(config | {"max_position_embeddings": WINDOW}))
    assert project.planned(TARGET) == {("fetch_model", "tiny"), ("probe_set", "tiny")}
    done = project.snakemake(TARGET)
    assert done.returncode == 0, done.stdout + done.stderr
    made = read_probe_set(project.folder / TARGET)
    weights = made.header["model"]["weights"]
    assert made.header["model"]["name"] == "tiny"
    assert [len(digest) for digest in weights.values()] == [64]
    assert {probe.kind for probe in made} == {
        *("no_eviction", "prefix", "suffix", "scattered", "streaming", "per_head", "repeated"),
    }
    assert min(len(probe.tokens) for probe in made) == 320
    assert max(len(probe.tokens) for probe in made) > WINDOW
    assert (project.folder / TARGET).stat().st_size < 2_000_000
    answers = {
        probe.name: Answer(AnswerKind.LOGPROB, probe.expected_of("original").logprob)
        for probe in made
    }
    assert judge(answers, made).passes()
    assert project.planned(TARGET) == set()
