"""What can be known of the inputs is said before anything is planned, all of it at once."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from kvfidelity.pipeline.preflight import faults, same_but_for_their_names
from kvfidelity.pipeline.run_folders import RESULTS
from kvfidelity.pipeline.settings import read_settings
from tests.workflow.project import Project


def errors(project: Project, *arguments: str) -> list[str]:
    """The lines of a dry run that name errors."""
    done = project.snakemake("-n", *arguments)
    output = done.stdout + done.stderr
    assert "Traceback" not in output
    assert (done.returncode != 0) == ("error: " in output), output
    return [line.partition("error: ")[2] for line in output.splitlines() if "error: " in line]


@pytest.fixture
def new(fresh: Project, tmp_path: Path) -> Project:
    """A project before its first run, to edit."""
    return fresh.copy(tmp_path / "project")


def test_all_faults_are_listed_by_a_dry_run(new: Project) -> None:
    (new.folder / "mine.py").write_text("class Broken(\n")
    (new.folder / "empty.jsonl").touch()
    (new.folder / "tiny/tokenizer.json").unlink()
    (new.folder / "resources/rubrics/formula.md").unlink()
    (new.folder / "config/claims.yaml").write_text("C1: {}\nC1: {}\n")
    new.configure(
        {
            "models": {
                "tiny": {"device": "cuda"},
                "other": {"source": "path", "path": "nowhere"},
                "home": {"source": "path", "path": "~/model"},
            },
            "datasets": {
                "own": {"path": "gone.jsonl"},
                "none": {"source": "path", "path": "empty.jsonl", "format": "sharegpt", "count": 1},
            },
            "policy_files": ["mine.py"],
        }
    )
    found = errors(new)
    expected = (
        "config/claims.yaml: C1 is given twice, in lines 1 and 2",
        "judges.formula.rubric: resources/rubrics/formula.md does not exist",
        "policy_files.0: 'mine.py' is not valid Python, line 1",
        "models.tiny.path: 'tiny' lacks tokenizer.json; copy the whole model there",
        "models.other.path: model 'nowhere' does not exist in ",
        "models.home.path: model '~/model' does not exist; ~ and $ are not replaced here",
        "datasets.own.path: dataset 'gone.jsonl' does not exist in ",
        "datasets.none.path: 'empty.jsonl' is empty; name a file with content",
        "models.tiny.device: cuda, but there is no NVIDIA GPU here",
    )
    assert len(found) == len(expected)
    for line, start in zip(found, expected, strict=True):
        assert line.startswith(start.removesuffix(": ")), line


def test_a_device_is_not_checked_where_jobs_may_run_elsewhere(new: Project) -> None:
    new.configure({"models": {"tiny": {"device": "cuda:7"}}})
    assert errors(new) == [
        "models.tiny.device: cuda:7, but there is no NVIDIA GPU here; write `auto` or `cpu`, or "
        "plan for another machine with `snakemake -n --jobs 1`"
    ]
    assert errors(new, "--jobs", "4") == []


def test_a_finished_run_needs_no_inputs(project: Project) -> None:
    """Results that came from a machine with a GPU."""
    shutil.rmtree(project.folder / "tiny")
    (project.folder / "resources/dialogues/own.jsonl").unlink()
    for folder in ("resources/models", "resources/datasets"):
        shutil.rmtree(project.folder / folder)
    assert errors(project) == []


def test_more_dialogues_than_there_are_is_one_line(project: Project) -> None:
    manifest = project.folder / "results/dialogues/tiny/own/manifest.json"
    kept = json.loads(manifest.read_text())["kept"]
    project.configure({"datasets": {"own": {"count": kept + 1}}})
    [line] = errors(project)
    assert line.startswith(f"datasets.own.count: {kept + 1} is more than the {kept} dialogues")
    project.configure({"datasets": {"own": {"count": kept + 1, "select": {"min_turns": 2}}}})
    assert errors(project) == [], "another selection may pass more"


def test_keys_given_twice_name_both_lines(new: Project) -> None:
    text = (new.folder / "config/config.yaml").read_text().replace("  streaming:", "  random:")
    (new.folder / "config/config.yaml").write_text(text)
    (new.folder / "second.yaml").write_text("title: a\nreport: {}\ntitle: b\n")
    lines = [n for n, line in enumerate(text.splitlines(), 1) if line == "  random:"]
    found = errors(new, "--configfile", "second.yaml")
    twice = f"policies.random is given twice, in lines {lines[0]} and {lines[1]}"
    assert {line.partition(";")[0].partition(": ")[2] for line in found} == {
        twice,
        "title is given twice, in lines 1 and 3",
    }


def test_policies_that_differ_in_name_only_are_named(new: Project) -> None:
    new.configure(
        {"policies": {"again": {"kind": "streaming_llm", "sinks": 5}, "more": {"kind": "knorm"}}}
    )
    settings = read_settings([new.folder / "config/config.yaml"])
    assert same_but_for_their_names(settings) == []
    new.configure({"policies": {"again": {"kind": "streaming_llm", "sinks": 4, "recent": 2000}}})
    done = new.snakemake("-n")
    warning = "warning: policies: streaming and again differ in name only"
    assert warning in done.stdout + done.stderr
    new.reconfigure({"grid": {"exclude": [{"policy": "again"}]}})
    settings = read_settings([new.folder / "config/config.yaml"])
    assert same_but_for_their_names(settings) == [], "it is not run"


@pytest.mark.parametrize(
    ("entry", "trigger", "positions", "fault"),
    [
        ({"kind": "knorm", "healing": "notice"}, "step", "stale", "set trigger: turn, not step"),
        ({"kind": "block", "which": "last", "healing": "refresh"}, "turn", "stale", "not stale"),
        ({"kind": "adakv", "healing": "merge"}, "turn", "stale", "adakv keeps different numbers"),
        ({"kind": "knorm", "healing": "refresh"}, "turn", "rerotated", "knorm keeps other tokens"),
        (
            {"kind": "protect", "policy": {"kind": "tova"}, "healing": "refresh"},
            "turn",
            "rerotated",
            "protect keeps other tokens",
        ),
    ],
)
def test_a_healing_that_cannot_act_is_refused_before_anything_is_planned(
    new: Project, entry: dict[str, Any], trigger: str, positions: str, fault: str
) -> None:
    others = [mode for mode in ("stale", "original", "rerotated") if mode != positions]
    threshold = {"at": "48tok", "trigger": trigger, "target": "24tok"}
    changes = {
        "policies": {"healed": entry},
        "thresholds": {"healing": threshold},
        "grid": {
            "include": [{"policy": "healed", "threshold": "healing", "positions": positions}],
            "exclude": [
                *({"policy": "healed", "threshold": name} for name in thresholds(new)),
                *({"policy": "healed", "positions": mode} for mode in others),
            ],
        },
    }
    [line] = found_in(new, changes)
    assert line.startswith(f"policies.healed.healing: healing {entry['healing']} ")
    assert fault in line


def thresholds(project: Project) -> list[str]:
    settings = read_settings([project.folder / "config/config.yaml"])
    return list(settings["thresholds"])


def found_in(project: Project, changes: dict[str, Any] | None = None) -> list[str]:
    project.configure(changes or {})
    settings = read_settings([project.folder / "config/config.yaml"])
    return list(faults(settings, RESULTS, computes_here=False, root=project.folder))


def test_links_that_lead_nowhere_are_named(new: Project) -> None:
    """The hub's cache is a folder of links; a copy of it has none of the files."""
    weights = new.folder / "tiny/model.safetensors"
    weights.unlink()
    weights.symlink_to("../../blobs/0123")
    [line] = [line for line in found_in(new) if "link" in line]
    assert "has a link model.safetensors to ../../blobs/0123, which is gone" in line


def test_a_pointer_in_place_of_weights_is_named(new: Project) -> None:
    weights = new.folder / "tiny/model.safetensors"
    weights.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n")
    [line] = found_in(new)
    assert "has a Git LFS pointer as model.safetensors; run `git lfs pull` there" in line


def test_a_part_of_the_weights_that_is_missing_is_named(new: Project) -> None:
    index = {"weight_map": {"a": "model.safetensors", "b": "model-00002-of-00002.safetensors"}}
    (new.folder / "tiny/model.safetensors.index.json").write_text(json.dumps(index))
    [line] = found_in(new)
    assert "lacks model-00002-of-00002.safetensors, which model.safetensors.index.json" in line


def test_a_policy_that_no_file_defines_is_named(new: Project) -> None:
    (new.folder / "mine.py").write_text("class Mine:\n    kind = 'mine'\n")
    policy = {"policy_files": ["mine.py"], "policies": {"x": {"kind": "mien"}}}
    assert found_in(new, policy) == ["policies.x: unknown kind 'mien'; did you mean 'mine'?"]
    (new.folder / "mine.py").write_text("class Mine:\n    kind = 'mi' + 'en'\n")
    assert found_in(new, policy) == []


def test_a_policy_file_that_fails_is_named_once(project: Project) -> None:
    (project.folder / "mine.py").write_text("import nowhere\n\n\nclass Mine:\n    kind = 'mine'\n")
    project.configure(
        {"policy_files": ["mine.py"], "policies": {"x": {"kind": "mine"}, "y": {"kind": "mine"}}}
    )
    done = project.snakemake("--keep-going")
    output = done.stdout + done.stderr
    assert done.returncode != 0
    fails = "mine.py fails: ModuleNotFoundError: No module named 'nowhere'"
    assert output.count(f"policies.x: {fails}") == output.count(f"policies.y: {fails}") == 1
    assert "failed: generate" not in output and " runs] " not in output


def test_a_variable_that_changes_float32_is_named(
    new: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NVIDIA_TF32_OVERRIDE", "1")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    settings = read_settings([new.folder / "config/config.yaml"])
    [line] = faults(settings, RESULTS, computes_here=True, root=new.folder)
    assert line.startswith("models.tiny.device: the environment sets NVIDIA_TF32_OVERRIDE")
    settings["models"]["tiny"]["dtype"] = "bfloat16"
    assert list(faults(settings, RESULTS, computes_here=True, root=new.folder)) == []
