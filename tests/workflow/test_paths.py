"""A project's folder may have any name; a folder of a similar name is never read."""

from __future__ import annotations

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
def test_a_run_in_a_folder_with_brackets_reads_its_own_files(
    fresh: Project, finished: Project, tmp_path: Path
) -> None:
    project = named(fresh, tmp_path)
    pool = "results/dialogues/tiny/own/pool.parquet"
    # What a pattern would find instead.
    folder = tmp_path / "exp1 & it's x"
    shutil.copytree(finished.folder / "results", folder / "results")
    for file in (folder / "results").rglob("*.parquet"):
        file.write_bytes(b"another folder's")
    assert ("generate", "tiny/own/baseline/original/none/0/000") in project.planned()
    done = project.snakemake()
    assert done.returncode == 0, done.stdout + done.stderr
    assert (project.folder / "results/report.html").is_file()
    made, expected = project.digests(), finished.digests()
    runs = [name for name in expected if "/generate/" in name and "turns" in name]
    assert runs
    ids = [
        pl.read_parquet(p.folder / name, glob=False)["dialogue_id"].to_list()
        for p in (project, finished)
        for name in runs
    ]
    assert ids[: len(runs)] == ids[len(runs) :]
    assert made[pool] == expected[pool]
    assert project.planned() == set()


def test_a_folder_whose_name_snakemake_would_fill_in_is_refused(
    fresh: Project, tmp_path: Path
) -> None:
    done = fresh.copy(tmp_path / "{model}").snakemake("-n")
    assert done.returncode != 0
    assert "{model} has braces in its name" in done.stdout + done.stderr
