"""Local weights and dialogues that change are fetched again, and only what they decide reruns."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

from kvfidelity.pipeline.rule_params import source_digest
from tests.workflow.project import CONFIG, Project, environment
from tests.workflow.test_reruns import ALL_RUNS, ENDS, JUDGE_TEST, POOLS, WHOLE, jobs_of

AFTER_EXTRACTION = (
    POOLS
    | jobs_of(ALL_RUNS, *WHOLE)
    | ENDS
    | JUDGE_TEST
    | {("corrupt_replies", "tiny/own"), ("score_corruptions", "tiny/own")}
)
#: Where the fetched dialogues lie, below the folders of datasets; `split` has a default.
OWN = f"own/{source_digest(CONFIG['datasets']['own'] | {'split': 'train'})}"
OF_THE_DATASET = {("fetch_dataset", OWN)}
OF_THE_MODEL = {("fetch_model", "tiny")}


def plan(project: Project) -> set[tuple[str, str]]:
    return {job for job in project.planned() if job[0] != "score_corruptions"}


def test_dialogues_that_change_are_run_again_once(project: Project) -> None:
    """One word, as many bytes, and the time that the file had."""
    file = project.folder / "resources/dialogues/own.jsonl"
    before, text = file.stat(), file.read_text()
    word = next(word for word in ("because", "there", "would", "the") if word in text)
    file.write_text(text.replace(word, word[::-1], 1))
    assert file.stat().st_size == before.st_size
    done = project.snakemake("-n")
    line = "resources/dialogues/own.jsonl has changed since it was fetched"
    assert line in done.stdout + done.stderr
    expected = {job for job in AFTER_EXTRACTION | OF_THE_DATASET if job[0] != "score_corruptions"}
    assert plan(project) == expected
    assert plan(project) == expected, "a second look forgets nothing"
    verify = [sys.executable, "workflow/scripts/verify.py"]
    found = subprocess.run(
        verify, cwd=project.folder, env=environment(), capture_output=True, text=True, check=False
    )
    assert found.returncode == 1
    assert f"changed: resources/provenance/datasets/{OWN}.json: {line}" in found.stdout
    assert "0 wrong, 0 stale, 1 changed" in found.stdout
    done = project.snakemake("results/dialogues/tiny/own/pool.parquet")
    assert done.returncode == 0, done.stdout + done.stderr
    assert OF_THE_DATASET.isdisjoint(project.planned())
    assert line not in (done := project.snakemake("-n")).stdout + done.stderr


def test_a_time_alone_changes_nothing(project: Project) -> None:
    for file in ("resources/dialogues/own.jsonl", "tiny/model.safetensors"):
        os.utime(project.folder / file, (time.time() - 9, time.time() - 9))
    assert project.planned() == set()


def test_dialogues_changed_and_changed_back_rerun_nothing(project: Project) -> None:
    file = project.folder / "resources/dialogues/own.jsonl"
    text = file.read_text()
    file.write_text(text.replace("e", "E", 1))
    assert plan(project) >= OF_THE_DATASET
    file.write_text(text)
    assert project.planned() == set()


def test_another_file_in_a_models_folder_is_noticed(project: Project) -> None:
    """A chat template of its own file replaces the tokenizer's."""
    (project.folder / "tiny/generation_config.json").unlink()
    done = project.snakemake("-n")
    assert "tiny/generation_config.json was fetched and is gone" in done.stdout + done.stderr
    assert plan(project) >= OF_THE_MODEL | jobs_of(ALL_RUNS, "generate")
    assert OF_THE_DATASET.isdisjoint(plan(project))


def test_weights_that_change_are_noticed_without_snakemakes_records(project: Project) -> None:
    """A project that was copied without `.snakemake` and without times."""
    shutil.rmtree(project.folder / ".snakemake")
    assert project.planned() == set()
    weights = project.folder / "tiny/model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.unlink()  # the fetched copy is the same file under another name
    weights.write_bytes(content)
    assert plan(project) >= OF_THE_MODEL | jobs_of(ALL_RUNS, "generate")


def test_a_folder_from_elsewhere_is_fetched_again(project: Project, tmp_path: Path) -> None:
    """Somebody else's `resources`, with its own records."""
    shutil.rmtree(project.folder / ".snakemake")
    shutil.rmtree(project.folder / "resources/provenance/sources")
    for file in (
        project.folder / f"resources/provenance/datasets/{OWN}.json",
        project.folder / f"resources/datasets/{OWN}/provenance.json",
    ):
        content = json.loads(file.read_text()) | {"path": "elsewhere/own.jsonl"}
        file.write_text(json.dumps(content))
    done = project.snakemake("-n")
    reason = "was fetched with path elsewhere/own.jsonl, the configuration says"
    assert f"datasets.own: resources/datasets/{OWN} {reason}" in done.stdout + done.stderr
    assert plan(project) >= OF_THE_DATASET | POOLS


def test_a_folder_put_under_a_record_of_another_is_fetched_again(project: Project) -> None:
    file = project.folder / "resources/models/tiny/provenance.json"
    file.write_text(file.read_text().replace('"path"', '"hub"'))
    assert plan(project) >= OF_THE_MODEL


def test_a_large_file_is_read_only_once_its_time_changes(project: Project, tmp_path: Path) -> None:
    from kvfidelity.pipeline import sources
    from kvfidelity.pipeline.settings import read_settings

    settings = read_settings([project.folder / "config/config.yaml"])
    root, limit = project.folder, sources.READ_AT_ONCE
    weights = root / "tiny/model.safetensors"
    for name in ("resources/provenance", "resources/models", "resources/datasets", ".snakemake"):
        shutil.rmtree(root / name)
    sources.READ_AT_ONCE = 100
    try:
        assert sources.refresh(settings, root) == []
        configured = root / "resources/sources/models/tiny.json"
        assert json.loads(configured.read_text())["files"]["model.safetensors"]["sha256"] is None
        done = project.snakemake("resources/models/tiny")
        assert done.returncode == 0, done.stdout + done.stderr
        sources.refresh(settings, root)
        os.utime(weights)
        assert sources.refresh(settings, root) == []
        content = bytearray(weights.read_bytes())
        content[-1] ^= 1
        weights.unlink()
        weights.write_bytes(content)
        line = (
            "models.tiny: tiny/model.safetensors has changed since it was fetched: it is fetched "
            "again, and what was made from it"
        )
        assert sources.refresh(settings, root) == [line]
        assert sources.refresh(settings, root) == [line]
    finally:
        sources.READ_AT_ONCE = limit
