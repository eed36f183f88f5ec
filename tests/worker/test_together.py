"""Jobs whose replies one worker decodes together get what each would have got alone."""

from __future__ import annotations

import subprocess
from typing import Any

from kvfidelity.artifacts import TIMINGS, read_parquet
from polars.testing import assert_frame_equal

from tests.waiting import wait_until
from tests.worker.conftest import Site

LANES = ("--lanes", "3")
OWN = {"replies": "own", "max_new_tokens": 8, "temperature": 0.8}


def lanes_of(site: Site, name: str) -> int:
    turns = read_parquet(site.folder / name / "turns.parquet", kind="turns")
    found: Any = turns["lanes"].max()
    return int(found)


def ends(site: Site, jobs: dict[str, subprocess.Popen[str]]) -> dict[str, tuple[int, str]]:
    return {name: site.end(job) for name, job in jobs.items()}


def same_runs(site: Site, name: str, other: str) -> None:
    """Equal but for timings and the rounding of sums in another order."""
    for kind in ("turns", "evictions", "recall"):
        one, two = (
            read_parquet(site.folder / job / f"{kind}.parquet", kind=kind) for job in (name, other)
        )
        drop = TIMINGS & set(one.columns)
        assert_frame_equal(one.drop(drop), two.drop(drop), rel_tol=1e-4, abs_tol=1e-5)


def test_jobs_in_lanes_give_the_artifacts_of_jobs_alone(site: Site) -> None:
    """More of them than lanes, of different lengths; a mistake among them is its own."""
    cells = [{"seed": seed, "max_turns": turns, **OWN} for seed, turns in enumerate((5, 3, 4, 5))]
    jobs = {f"job-{n}": site.start(f"job-{n}", *LANES, **cell) for n, cell in enumerate(cells)}
    ended = ends(site, jobs)
    assert [code for code, _ in ended.values()] == [0] * 4, ended
    assert sum(said.count("loading") for _, said in ended.values()) == 1
    assert max(lanes_of(site, name) for name in jobs) > 1
    assert any(" lanes, " in said and "tokens/s in all)" in said for _, said in ended.values())
    code, said = site.run("bad", *LANES, "--dialogue", "007")
    assert code == 2 and said.startswith("error: ")
    assert site.run("next", *LANES)[1].count("loading") == 0
    for number, cell in enumerate(cells):
        code, said = site.run(f"alone-{number}", **cell)
        assert (code, said.count("loading")) == (0, int(number == 0)), said
        same_runs(site, f"job-{number}", f"alone-{number}")
        assert lanes_of(site, f"alone-{number}") == 1


def test_memory_that_runs_out_among_others_is_asked_for_once_more_alone(site: Site) -> None:
    """Which in a worker of one lane is a result; see test_breakage."""
    deed = site.deed("exhaust memory", times=1)
    jobs = {name: site.start(name, *LANES, **OWN, **deed) for name in ("one", "two")}
    ended = ends(site, jobs)
    assert [code for code, _ in ended.values()] == [0, 0], ended
    assert sum(said.count("once more, alone") for _, said in ended.values()) == 1
    assert site.run("alone", *LANES, **OWN, **deed)[0] == 0
    for name in jobs:
        same_runs(site, name, "alone")


def test_a_job_that_kills_the_worker_costs_the_others_a_second_try(site: Site) -> None:
    bad = site.start("bad", *LANES, **OWN, **site.deed("crash"))
    jobs = {name: site.start(name, *LANES, **OWN) for name in ("one", "two")}
    code, said = site.end(bad)
    assert code == 1 and "the worker died 3 times in the middle of this job" in said
    ended = ends(site, jobs)
    assert [code for code, _ in ended.values()] == [0, 0], ended
    assert all(said.count("starting another") <= 1 for _, said in ended.values())


def test_an_unexpected_error_of_one_is_its_own_and_the_worker_leaves(site: Site) -> None:
    bad = site.start("bad", *LANES, **OWN, **site.deed("raise"))
    jobs = {name: site.start(name, *LANES, **OWN) for name in ("one", "two")}
    code, said = site.end(bad)
    assert code == 1 and said.rstrip().endswith("ZeroDivisionError: no such thing")
    ended = ends(site, jobs)
    assert [code for code, _ in ended.values()] == [0, 0], ended
    wait_until(lambda: not site.workers())


def test_a_damaged_model_is_one_line_in_lanes_too(site: Site) -> None:
    with (site.folder / "model/model.safetensors").open("r+b") as file:
        file.truncate(1000)
    code, said = site.run("job", *LANES)
    assert code == 2 and said.splitlines()[-1].startswith("error: ")
    assert "Traceback" not in said


def test_a_killed_client_costs_the_others_nothing_and_all_killed_end_the_worker(site: Site) -> None:
    dead = site.start("dead", *LANES, **OWN, **site.deed("hold"))
    jobs = {name: site.start(name, *LANES, **OWN) for name in ("one", "two")}
    wait_until(site.marks)
    dead.kill()
    dead.wait()
    site.let_go()
    ended = ends(site, jobs)
    assert [code for code, _ in ended.values()] == [0, 0], ended
    assert "died" not in "".join(said for _, said in ended.values())
    assert site.run("after", *LANES, **OWN)[1].count("loading") == 0
    assert not (site.folder / "dead/turns.parquet").exists()
    # A worker that nobody waits for any more leaves.
    done = len(site.marks())
    (site.folder / "marker.go").unlink()
    jobs = {name: site.start(name, *LANES, **OWN, **site.deed("hold")) for name in ("one", "two")}
    wait_until(lambda: len(site.marks()) > done)
    for job in jobs.values():
        job.kill()
        job.wait()
    site.let_go()
    wait_until(lambda: not site.workers())


def test_who_wants_another_model_waits_until_the_others_are_served(site: Site) -> None:
    jobs = {name: site.start(name, *LANES, **OWN, **site.deed("hold")) for name in ("one", "two")}
    wait_until(site.marks)
    jobs["other"] = site.start("other", *LANES, "--dtype", "bfloat16", **OWN)
    site.let_go()
    ended = ends(site, jobs)
    assert [code for code, _ in ended.values()] == [0] * 3, ended
    assert "died" not in "".join(said for _, said in ended.values())
    assert len(site.workers()) == 1


def test_stop_ends_it_in_the_middle(site: Site) -> None:
    job = site.start("job", *LANES, **OWN, **site.deed("sleep"))
    wait_until(site.marks)
    job.kill()  # or it would start another worker
    job.wait()
    assert site.workers()
    site.stop()
    wait_until(lambda: not site.workers())
