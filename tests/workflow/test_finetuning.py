"""A fine-tuned model in a grid: trained once, used as any other, and again by another recipe."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from tests.finetuning.small import dialogues
from tests.workflow.project import Project, merged

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
    "models": {
        "tuned": {"source": "adapter", "adapter": RECIPE},
        # Not in the grid, so it is not trained: what trains it is asked for by name.
        "again": {"source": "adapter", "adapter": RECIPE | {"seed": 5, "arm": "skips"}},
    },
    "datasets": {
        "own": {"select": {"split": "test"}},
        "short": {"source": "path", "path": "short.json", "format": "sharegpt", "count": 1},
    },
    "grid": {
        "models": ["tiny", "tuned"],
        "datasets": ["own"],
        "policies": ["baseline", "streaming"],
        "positions": ["stale"],
    },
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
    [dialogues_file] = (resources / "training_dialogues").iterdir()
    digest = dialogues_file.stem
    about = resources / f"provenance/training_dialogues/{digest}.json"
    chosen = json.loads(about.read_text())["dialogues"]
    assert chosen["number"] == 2
    trained_on = record["made_from"]["dialogues"]
    assert trained_on == {name: chosen[name] for name in ("number", "sha256")}
    benchmarks = project.folder / "results/benchmarks"
    assert (benchmarks / f"extract_training_dialogues/{digest}.tsv").is_file()
    assert (benchmarks / "copy_dialogues/tuned/own.tsv").is_file()
    assert not (benchmarks / "extract_dialogues/tuned").exists()
    pools = [
        pl.read_parquet(project.folder / f"results/dialogues/{name}/own/pool.parquet")
        for name in ("tiny", "tuned")
    ]
    assert pools[0].equals(pools[1])
    assert project.planned("aggregate") == set(), "a finished run has nothing to do"
    # A model of another arm and seed is trained on the same file.
    other = "resources/provenance/models/again.json"
    assert project.planned(other) == {("finetune_model", "again")}
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
    assert not {rule for rule, _ in planned} & {"fetch_model", "extract_training_dialogues"}
    runs = {name.split("/")[0] for rule, name in planned if rule == "generate"}
    assert runs == {"tuned"}
    # A label does not change the model.
    project.reconfigure({"models": {"tuned": {"adapter": {"seed": 0}, "label": "tuned"}}})
    assert not {rule for rule, _ in project.planned()} & {"finetune_model", "generate"}
    # Other training dialogues: they are extracted, and both models need them.
    select = {"max_tokens": 2999}
    changed = {name: {"adapter": {"select": select}} for name in ("tuned", "again")}
    project.reconfigure({"models": changed})
    planned = project.planned("aggregate", other)
    assert {name for rule, name in planned if rule == "finetune_model"} == {"tuned", "again"}
    [(_, new)] = [job for job in planned if job[0] == "extract_training_dialogues"]
    assert new != digest
    # A base that is not in the grid is not run, but its dialogues are extracted.
    project.configure(merged(CHANGES, {"grid": {"models": ["tuned"]}}))
    shutil.rmtree(project.folder / "results")
    planned = project.planned("aggregate")
    assert {job for job in planned if job[0].endswith("_dialogues")} == {
        ("extract_dialogues", "tiny/own"),
        ("copy_dialogues", "tuned/own"),
    }
    assert {name.split("/")[0] for rule, name in planned if rule == "generate"} == {"tuned"}
