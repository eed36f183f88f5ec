"""Workers share baselines on disk."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.waiting import wait_until
from tests.worker.conftest import Workdir
from tests.worker.test_worker import artifact_digests

KEPT = ("--prefix-disk", "1GB", "--store-prefixes", "all")
BASELINE: dict[str, Any] = {
    "policy": "baseline",
    "kind": "baseline",
    "positions": "original",
    "at": None,
    "target": None,
}
OWN = {"replies": "own", "max_new_tokens": 8, "temperature": 0.8, "seed": 3}


def kept(workdir: Workdir) -> list[Path]:
    return sorted((workdir.folder / ".snakemake/kvfidelity-prefixes").iterdir())


def kill_worker(workdir: Workdir) -> None:
    workdir.worker().kill()
    wait_until(lambda: not workdir.workers())


def test_a_worker_uses_the_baseline_of_a_killed_worker(workdir: Workdir) -> None:
    for name, cell in {"never": BASELINE, "recent": {}}.items():
        assert workdir.run(f"{name}-alone", **cell, **OWN)[0] == 0
    assert not (workdir.folder / ".snakemake").exists()
    code, stderr = workdir.run("first", *KEPT, **BASELINE, **OWN)
    assert (code, stderr.count("loading"), stderr.count("turn ")) == (0, 1, 5), stderr
    [file] = kept(workdir)
    written = file.stat().st_ino
    kill_worker(workdir)
    code, stderr = workdir.run("second", *KEPT, **BASELINE, **OWN)
    assert (code, stderr.count("loading"), stderr.count("turn ")) == (0, 1, 0), "no turn is played"
    kill_worker(workdir)
    # A policy added the next day: it plays what comes from its first eviction on.
    code, stderr = workdir.run("third", *KEPT, **OWN)
    assert code == 0 and "turn 1 of 5" not in stderr and "turn 5 of 5" in stderr
    assert [file.stat().st_ino for file in kept(workdir)] == [written]
    for name in ("first", "second"):
        assert artifact_digests(workdir, name) == artifact_digests(workdir, "never-alone")
    assert artifact_digests(workdir, "third") == artifact_digests(workdir, "recent-alone")


def test_a_corrupt_prefix_costs_a_line_in_the_jobs_log(workdir: Workdir) -> None:
    assert workdir.run("first", *KEPT)[0] == 0
    [file] = kept(workdir)
    content = file.read_bytes()
    file.write_bytes(content[: len(content) // 2])
    kill_worker(workdir)
    code, stderr = workdir.run("second", *KEPT)
    assert code == 0 and f"{file} is corrupt (" in stderr
    assert artifact_digests(workdir, "first") == artifact_digests(workdir, "second")
    assert file.stat().st_size > len(content) // 2, "whole again; a time takes more digits or fewer"


def test_other_code_or_another_model_does_not_use_it(workdir: Workdir) -> None:
    for arguments in ((), ("--code-digest", "new", "--dtype", "bfloat16")):
        code, stderr = workdir.run("job", *KEPT, *arguments, **BASELINE)
        assert code == 0 and "turn 1 of 5" in stderr
    assert len(kept(workdir)) == 2


def test_a_folder_that_cannot_be_written_to_stops_no_job(workdir: Workdir) -> None:
    (workdir.folder / ".snakemake").write_text("no folder")
    code, stderr = workdir.run("job", *KEPT)
    assert code == 0 and "is not stored in" in stderr


def test_an_invalid_size_is_one_line(workdir: Workdir) -> None:
    code, stderr = workdir.run("job", "--prefix-disk", "5600tok")
    assert code == 2 and stderr.splitlines()[-1].startswith("error: '5600tok' must be in bytes")
