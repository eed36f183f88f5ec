"""A fine-tuned model in a grid: trained once, used as any other, and again by another recipe."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from tests.finetuning.small import dialogues
from tests.workflow.project import Project

RECIPE = {
    "base": "tiny",
    "data": "short",
    "arm": "stale",
    "steps": 2,
    "batch": 1,
    "rank": 2,
    "dialogues": 2,
    "select": {"max_tokens": 3000},
}
CHANGES: dict[str, Any] = {
    "models": {"tuned": {"source": "adapter", "adapter": RECIPE}},
    "datasets": {
        "own": {"select": {"split": "test"}},
        "short": {"source": "path", "path": "short.json", "format": "sharegpt", "count": 1},
    },
    "grid": {"datasets": ["own"], "policies": ["baseline", "streaming"], "positions": ["stale"]},
}
#: What the page needs of each model besides the tables: rules, and a judge in the output's path.
REMAINING = {
    "corrupt_replies": "",
    "lengths": "",
    "score_corruptions": "",
    "test_judge": "formula/",
}


@pytest.mark.long(60)
def test_a_fine_tuned_model_is_a_model_like_any_other(prepared: Project, tmp_path: Path) -> None:
    """To the tables; what remains is planned for both models."""
    project = prepared.copy(tmp_path / "project")
    project.configure(CHANGES)
    shutil.copyfile(dialogues(tmp_path) / "data.json", project.folder / "short.json")
    done = project.snakemake("aggregate")
    assert done.returncode == 0, done.stdout + done.stderr
    resources = project.folder / "resources"
    record = json.loads((resources / "provenance/models/tuned.json").read_text())
    base = json.loads((resources / "provenance/models/tiny.json").read_text())
    assert record["revision"].startswith("stale seed 0 of tiny#recipe=")
    assert record["made_from"]["base"] == base["files"]
    assert record["files"].keys() - base["files"].keys() == {"training.json"}
    changed = {name for name in base["files"] if base["files"][name] != record["files"][name]}
    assert changed == {"model.safetensors"}
    assert not (resources / "checkpoints/tuned").exists()
    tables = project.folder / "results/tables"
    turns = pl.read_parquet(tables / "turns.parquet")
    assert dict(turns.select("model", "arm").unique().rows()) == {"tiny": "none", "tuned": "stale"}
    assert set(pl.read_parquet(tables / "finetuning.parquet")["against"]) == {"none"}
    assert project.planned("aggregate") == set(), "a finished run has nothing to do"
    of_models = {(rule, name) for rule, name in project.planned() if name}
    assert of_models == {
        (rule, f"{judge}{model}/own")
        for model in ("tiny", "tuned")
        for rule, judge in REMAINING.items()
    }

    # Another recipe: the model is trained again, and its runs; not the base's.
    project.reconfigure({"models": {"tuned": {"adapter": {"seed": 1}}}})
    planned = project.planned()
    assert ("finetune_model", "tuned") in planned
    assert {name for rule, name in planned if rule == "fetch_model"} == set()
    runs = {name.split("/")[0] for rule, name in planned if rule == "generate"}
    assert runs == {"tuned"}
    # A label does not change the model.
    project.reconfigure({"models": {"tuned": {"adapter": {"seed": 0}, "label": "tuned"}}})
    assert not {rule for rule, _ in project.planned()} & {"finetune_model", "generate"}
