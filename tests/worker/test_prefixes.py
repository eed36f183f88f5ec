"""What a worker computed before the first eviction is there for the next one, on disk."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.waiting import wait_until
from tests.worker.conftest import Site
from tests.worker.test_worker import artifact_digests

KEPT = ("--prefix-disk", "1GB")
BASELINE: dict[str, Any] = {
    "policy": "baseline",
    "kind": "baseline",
    "positions": "original",
    "at": None,
    "target": None,
}
OWN = {"replies": "own", "max_new_tokens": 8, "temperature": 0.8, "seed": 3}


def kept(site: Site) -> list[Path]:
    return sorted((site.folder / ".snakemake/kvfidelity-prefixes").iterdir())


def kill_worker(site: Site) -> None:
    site.worker().kill()
    wait_until(lambda: not site.workers())


def test_the_next_worker_goes_on_from_what_a_killed_one_computed(site: Site) -> None:
    for name, cell in {"never": BASELINE, "recent": {}}.items():
        assert site.run(f"{name}-alone", **cell, **OWN)[0] == 0
    assert not (site.folder / ".snakemake").exists()
    code, said = site.run("first", *KEPT, **BASELINE, **OWN)
    assert (code, said.count("loading"), said.count("turn ")) == (0, 1, 5), said
    [file] = kept(site)
    written = file.stat().st_ino
    kill_worker(site)
    code, said = site.run("second", *KEPT, **BASELINE, **OWN)
    assert (code, said.count("loading"), said.count("turn ")) == (0, 1, 0), "no turn is played"
    kill_worker(site)
    # A policy added the next day: it plays what comes from its first eviction on.
    code, said = site.run("third", *KEPT, **OWN)
    assert code == 0 and "turn 1 of 5" not in said and "turn 5 of 5" in said
    assert [file.stat().st_ino for file in kept(site)] == [written]
    for name in ("first", "second"):
        assert artifact_digests(site, name) == artifact_digests(site, "never-alone")
    assert artifact_digests(site, "third") == artifact_digests(site, "recent-alone")


def test_a_damaged_prefix_costs_a_line_in_the_jobs_log(site: Site) -> None:
    assert site.run("first", *KEPT)[0] == 0
    [file] = kept(site)
    content = file.read_bytes()
    file.write_bytes(content[: len(content) // 2])
    kill_worker(site)
    code, said = site.run("second", *KEPT)
    assert code == 0 and f"{file} is damaged (" in said
    assert artifact_digests(site, "first") == artifact_digests(site, "second")
    assert file.stat().st_size > len(content) // 2, "whole again; a time takes more digits or fewer"


def test_other_code_and_another_model_take_nothing_of_it(site: Site) -> None:
    for arguments in ((), ("--fingerprint", "new", "--dtype", "bfloat16")):
        code, said = site.run("job", *KEPT, *arguments, **BASELINE)
        assert code == 0 and "turn 1 of 5" in said
    assert len(kept(site)) == 2


def test_a_folder_that_cannot_be_written_to_stops_no_job(site: Site) -> None:
    (site.folder / ".snakemake").write_text("no folder")
    code, said = site.run("job", *KEPT)
    assert code == 0 and "is not kept in" in said


def test_a_size_that_is_none_is_one_line(site: Site) -> None:
    code, said = site.run("job", "--prefix-disk", "5600tok")
    assert code == 2 and said.splitlines()[-1].startswith("error: '5600tok' must be in bytes")
