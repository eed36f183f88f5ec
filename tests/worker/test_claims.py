"""Each planned run belongs to exactly one GPU, whatever workers and jobs ask for, in any order."""

from __future__ import annotations

import contextlib
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvfidelity.records.grid import dialogue_of
from kvfidelity.worker import claims
from kvfidelity.worker.claims import RunClaims, claim, give_up, owner
from kvfidelity.worker.job import PLANNED_RUNS


@contextlib.contextmanager
def workflow() -> Iterator[Path]:
    """A workflow's folder with a list of planned runs, and a folder for its claims."""
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(claims, "socket_folder", lambda: Path(folder))
        plan_is_written()
        yield Path(folder)


def plan_is_written() -> None:
    PLANNED_RUNS.parent.mkdir(exist_ok=True)
    new = PLANNED_RUNS.with_suffix(".new")
    new.touch()
    new.replace(PLANNED_RUNS)


def runs(dialogues: int, policies: int) -> list[str]:
    return [f"m/d/p{p}/stale/t/0/{n:03d}" for n in range(dialogues) for p in range(policies)]


def asked(gpu: int, planned: list[str], *, gpus: int = 2, batch_size: int = 4) -> list[str]:
    return RunClaims(gpu, gpus, batch_size).take(planned, lambda run: False, 4 * batch_size)[0]


@given(
    gpus=st.integers(2, 4),
    batch_size=st.integers(1, 5),
    planned=st.builds(runs, st.integers(1, 4), st.integers(1, 6)),
    steps=st.lists(st.tuples(st.booleans(), st.integers(0, 3), st.integers(0, 23)), max_size=30),
)
def test_every_planned_run_belongs_to_one_gpu(
    gpus: int, batch_size: int, planned: list[str], steps: list[tuple[bool, int, int]]
) -> None:
    of: dict[str, int] = {}
    made: set[str] = set()
    with workflow():
        for looks_ahead, gpu, place in steps:
            gpu, run = gpu % gpus, planned[place % len(planned)]
            if not looks_ahead:
                assert of.setdefault(run, found := claim(run, gpu, gpus)) == found
                made.add(run)
                continue
            known = len(of)
            mine = RunClaims(gpu, gpus, batch_size)
            following, more = mine.take(planned, made.__contains__, 4 * batch_size)
            assert all(of.setdefault(run, gpu) == gpu for run in following)
            assert len(of) - known <= batch_size and made.isdisjoint(following)
            assert more or set(of) == set(planned)
        found = {run: one.gpu for run in planned if (one := owner(run, gpus))}
        assert found == of
        assert all(of.get(run, 0) == claim(run, 0, gpus) for run in planned)


@pytest.mark.parametrize(("dialogues", "policies"), [(4, 3), (1, 11), (3, 5), (2, 1)])
def test_gpus_that_ask_in_turns_share_the_runs_evenly(dialogues: int, policies: int) -> None:
    planned = runs(dialogues, policies)
    with workflow():
        taken = [set(asked(gpu, planned)) for _ in planned for gpu in (0, 1)]
    found = [set().union(*taken[gpu::2]) for gpu in (0, 1)]
    assert found[0] | found[1] == set(planned) and found[0].isdisjoint(found[1])
    assert abs(len(found[0]) - len(found[1])) <= 1


def test_a_gpu_goes_on_with_its_dialogues_and_leaves_those_of_another() -> None:
    planned = runs(dialogues=4, policies=4)
    with workflow():
        assert [claim(planned[0], 0, 2), claim(planned[1], 1, 2)] == [0, 1]
        found = [asked(gpu, planned) for gpu in (0, 1, 0, 1)]
    numbers = [Counter(int(dialogue_of(run)[-3:]) for run in taken) for taken in found]
    assert numbers[0] == {0: 3, 1: 2}  # its own, two others of that dialogue, two of the next
    assert numbers[1] == {0: 1, 2: 4}  # its own, and a dialogue that is untouched
    assert numbers[2] == {0: 3, 1: 4, 3: 1}  # half of what is left
    assert numbers[3] == {0: 1, 2: 4, 3: 3}


def test_the_last_runs_are_shared_though_they_are_of_one_dialogue() -> None:
    planned = runs(dialogues=1, policies=6)
    with workflow():
        assert [len(asked(gpu, planned)) for gpu in (0, 1)] == [3, 3]


def test_a_gpu_that_is_ready_first_leaves_the_others_their_share() -> None:
    planned = runs(dialogues=5, policies=4)
    mine, made = RunClaims(0, 2, 4), set[str]()
    with workflow():
        for _ in planned:
            first, more = mine.take(planned, made.__contains__, 16)
        assert len(first) == 10 and more
        made.update(first[:6])
        assert mine.take(planned, made.__contains__, 16)[0] == first[6:]
        # With less than a batch to do it takes half of what no other has asked for.
        made.add(first[6])
        further, _ = mine.take(planned, made.__contains__, 16)
        assert set(further) > set(first[7:]) and len(further) == 3 + 4
        assert len(asked(1, planned)) == 4


@given(
    asking=st.lists(st.integers(0, 2), max_size=6),
    jobs=st.lists(st.tuples(st.integers(0, 2), st.integers(0, 7)), max_size=8),
    gone=st.integers(0, 2),
)
def test_what_nobody_asked_a_lost_worker_for_is_given_up(
    asking: list[int], jobs: list[tuple[int, int]], gone: int
) -> None:
    planned = runs(dialogues=2, policies=4)
    another = planned[0].replace("m/", "n/", 1)
    with workflow():
        for gpu in asking:
            asked(gpu, [*planned, another], gpus=3, batch_size=2)
        for gpu, place in jobs:
            claim(planned[place], gpu, 3)
        before = {run: owner(run, 3) for run in [*planned, another]}
        give_up(planned[0], gone, 3)
        for run, found in before.items():
            lost = found == (gone, True) and run != another
            assert owner(run, 3) == (None if lost else found)
            assert (found is None or found.ahead) or run in {planned[place] for _, place in jobs}
        kept = owner(planned[0], 3)
        assert claim(planned[0], 1, 3) == (kept.gpu if kept else 1)


def test_a_list_that_is_written_again_has_no_claims() -> None:
    with workflow():
        assert [claim("a", 1, 2), claim("a", 0, 2)] == [1, 1]
        plan_is_written()
        assert claim("a", 0, 2) == 0
        # The GPU may not be there with another number of GPUs.
        assert owner("a", 3) is None


def test_a_process_that_is_killed_while_it_claims_leaves_the_other_claims() -> None:
    with workflow() as folder:
        claim("a run", 1, 2)
        [file] = folder.glob("*-claims.txt")
        with file.open("a") as opened:
            opened.write("1 another")
        assert claim("b", 0, 2) == 0
        found = [owner(run, 2) for run in ("a run", "b", "another run")]
        assert found == [(1, False), (0, False), None]
