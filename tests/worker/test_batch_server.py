"""Jobs of one batch get the same artifacts as jobs alone."""

from __future__ import annotations

import subprocess
from typing import Any

from polars.testing import assert_frame_equal

from kvfidelity.records.artifacts import TIMINGS, read_metadata, read_parquet
from kvfidelity.records.grid import GENERATED
from kvfidelity.records.notes import BATCH_SIZE
from tests.waiting import wait_until
from tests.worker.conftest import Workdir

BATCH = ("--batch-size", "3")
OWN = {"replies": "own", "max_new_tokens": 8, "temperature": 0.8}


def runs_decoded_together(workdir: Workdir, name: str) -> int:
    turns = read_parquet(workdir.folder / name / "turns.parquet", kind="turns")
    found: Any = turns["concurrency"].max()
    return int(found)


def ends(workdir: Workdir, jobs: dict[str, subprocess.Popen[str]]) -> dict[str, tuple[int, str]]:
    return {name: workdir.end(job) for name, job in jobs.items()}


def same_runs(workdir: Workdir, name: str, other: str) -> None:
    """Equal except for timings and rounding."""
    for kind in GENERATED:
        one, two = (
            read_parquet(workdir.folder / job / f"{kind}.parquet", kind=kind)
            for job in (name, other)
        )
        drop = TIMINGS & set(one.columns)
        assert_frame_equal(one.drop(drop), two.drop(drop), rel_tol=1e-4, abs_tol=1e-5)


def test_jobs_in_a_batch_give_the_artifacts_of_jobs_alone(workdir: Workdir) -> None:
    """More jobs than batch_size, of different lengths; an error in one leaves the others."""
    cells = [{"seed": seed, "max_turns": turns, **OWN} for seed, turns in enumerate((5, 3, 4, 5))]
    jobs = {f"job-{n}": workdir.start(f"job-{n}", *BATCH, **cell) for n, cell in enumerate(cells)}
    ended = ends(workdir, jobs)
    assert [code for code, _ in ended.values()] == [0] * 4, ended
    assert sum(stderr.count("loading") for _, stderr in ended.values()) == 1
    assert max(runs_decoded_together(workdir, name) for name in jobs) > 1
    for name in jobs:
        notes = read_metadata(workdir.folder / name / "turns.parquet")
        assert float(notes[BATCH_SIZE]) == 3
    assert any(
        "runs computed together, " in stderr and "tokens/s in all)" in stderr
        for _, stderr in ended.values()
    )
    code, stderr = workdir.run("bad", *BATCH, "--dialogue", "007")
    assert code == 2 and stderr.startswith("error: ")
    assert workdir.run("next", *BATCH)[1].count("loading") == 0
    for number, cell in enumerate(cells):
        code, stderr = workdir.run(f"alone-{number}", **cell)
        assert (code, stderr.count("loading")) == (0, int(number == 0)), stderr
        same_runs(workdir, f"job-{number}", f"alone-{number}")
        assert runs_decoded_together(workdir, f"alone-{number}") == 1


def test_a_run_that_is_out_of_memory_among_others_is_restarted_alone(workdir: Workdir) -> None:
    """With batch_size 1 it is a result; see test_breakage."""
    fault = workdir.fault_spec("exhaust memory", times=1)
    jobs = {name: workdir.start(name, *BATCH, **OWN, **fault) for name in ("one", "two")}
    ended = ends(workdir, jobs)
    assert [code for code, _ in ended.values()] == [0, 0], ended
    assert sum(stderr.count("this run starts again") for _, stderr in ended.values()) == 1
    assert workdir.run("alone", *BATCH, **OWN, **fault)[0] == 0
    for name in jobs:
        same_runs(workdir, name, "alone")


def test_a_job_that_kills_the_worker_costs_the_others_a_second_try(workdir: Workdir) -> None:
    bad = workdir.start("bad", *BATCH, **OWN, **workdir.fault_spec("crash"))
    jobs = {name: workdir.start(name, *BATCH, **OWN) for name in ("one", "two")}
    code, stderr = workdir.end(bad)
    assert code == 1 and "the worker died 3 times during this job" in stderr
    ended = ends(workdir, jobs)
    assert [code for code, _ in ended.values()] == [0, 0], ended
    assert all(stderr.count("starting another") <= 1 for _, stderr in ended.values())


def test_an_unexpected_error_fails_one_job_and_ends_the_worker(workdir: Workdir) -> None:
    bad = workdir.start("bad", *BATCH, **OWN, **workdir.fault_spec("raise"))
    jobs = {name: workdir.start(name, *BATCH, **OWN) for name in ("one", "two")}
    code, stderr = workdir.end(bad)
    assert code == 1 and stderr.rstrip().endswith("ZeroDivisionError: no such thing")
    ended = ends(workdir, jobs)
    assert [code for code, _ in ended.values()] == [0, 0], ended
    wait_until(lambda: not workdir.workers())


def test_a_policy_that_exits_fails_its_job_and_leaves_no_client_waiting(workdir: Workdir) -> None:
    for name, options in (("alone", ()), ("batch", BATCH)):
        code, stderr = workdir.run(name, *options, **workdir.fault_spec("exit"))
        assert code == 1 and stderr.rstrip().endswith("SystemExit: no way out")
        assert "the worker died" not in stderr


def test_a_corrupt_model_is_one_line_in_a_batch_too(workdir: Workdir) -> None:
    with (workdir.folder / "model/model.safetensors").open("r+b") as file:
        file.truncate(1000)
    code, stderr = workdir.run("job", *BATCH)
    assert code == 2 and stderr.splitlines()[-1].startswith("error: ")
    assert "Traceback" not in stderr


def test_a_killed_client_costs_the_others_nothing_and_all_killed_end_the_worker(
    workdir: Workdir,
) -> None:
    dead = workdir.start("dead", *BATCH, **OWN, **workdir.fault_spec("hold"))
    jobs = {name: workdir.start(name, *BATCH, **OWN) for name in ("one", "two")}
    wait_until(workdir.faults_done)
    dead.kill()
    dead.wait()
    workdir.let_go()
    ended = ends(workdir, jobs)
    assert [code for code, _ in ended.values()] == [0, 0], ended
    assert "died" not in "".join(stderr for _, stderr in ended.values())
    assert workdir.run("after", *BATCH, **OWN)[1].count("loading") == 0
    assert not (workdir.folder / "dead/turns.parquet").exists()
    # A worker exits when no client waits for it.
    done = len(workdir.faults_done())
    (workdir.folder / "marker.go").unlink()
    jobs = {
        name: workdir.start(name, *BATCH, **OWN, **workdir.fault_spec("hold"))
        for name in ("one", "two")
    }
    wait_until(lambda: len(workdir.faults_done()) > done)
    for job in jobs.values():
        job.kill()
        job.wait()
    workdir.let_go()
    wait_until(lambda: not workdir.workers())


def test_a_client_of_another_model_waits_until_the_others_are_served(workdir: Workdir) -> None:
    jobs = {
        name: workdir.start(name, *BATCH, **OWN, **workdir.fault_spec("hold"))
        for name in ("one", "two")
    }
    wait_until(workdir.faults_done)
    jobs["other"] = workdir.start("other", *BATCH, "--dtype", "bfloat16", **OWN)
    workdir.let_go()
    ended = ends(workdir, jobs)
    assert [code for code, _ in ended.values()] == [0] * 3, ended
    assert "died" not in "".join(stderr for _, stderr in ended.values())
    assert len(workdir.workers()) == 1


def test_stop_ends_the_worker_during_a_run(workdir: Workdir) -> None:
    job = workdir.start("job", *BATCH, **OWN, **workdir.fault_spec("sleep"))
    wait_until(workdir.faults_done)
    job.kill()  # or it would start another worker
    job.wait()
    assert workdir.workers()
    workdir.stop()
    wait_until(lambda: not workdir.workers())
