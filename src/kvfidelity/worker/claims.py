"""Which GPU each planned run belongs to, so that no two workers compute the same one.

A worker computes runs ahead of their jobs. With several GPUs, a run belongs to one of them from the
moment at which a worker looks ahead at it or its job has a GPU, whichever comes first; its job is
then done on that GPU. What a worker looked ahead at and no job has asked for is given up when a job
finds that the worker there has ended, or serves another model: else all jobs would wait for one to
start there, while the workers of other GPUs have nothing to do. A list of planned runs that is
written again, as at each start of a workflow, has no claims yet. Of several workers on a GPU each
counts as a GPU here.
"""

from __future__ import annotations

import contextlib
import fcntl
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from kvfidelity.records.grid import RunKey, dialogue_of
from kvfidelity.worker.job import PLANNED_RUNS
from kvfidelity.worker.socket_path import socket_folder, workflow_digest


class Claim(NamedTuple):
    """gpu: the number of the GPU that a run belongs to. ahead: a worker looked ahead at it, and its
    job has not asked yet."""

    gpu: int
    ahead: bool


@dataclass(frozen=True)
class RunClaims:
    """What one GPU has claimed, and may claim.

    Args:
        gpu: its number, from 0. gpus: how many there are.
        batch_size: runs that a worker computes together.
    """

    gpu: int
    gpus: int
    batch_size: int

    def take(
        self, planned: Sequence[str], is_made: Callable[[str], bool], limit: int
    ) -> tuple[list[str], bool]:
        """The next planned runs that belong to this GPU, some of them from now on.

        It claims at most a batch at a time, so that the runs of all GPUs come in turns in the order
        of their jobs, and no more than an even share of what is planned. A GPU that has had its
        share and has less than a batch to do claims an even share of what others have left: not
        earlier, or the one whose worker is ready first would claim most before another asks.

        Args:
            planned: the runs in the order of their jobs, made ones among them.
            limit: most runs to return.

        Returns:
            The runs, and whether some are left that it may claim later.
        """
        with _owners(self.gpus) as owners:
            left = sum(run not in owners for run in planned)
            own = [run for run in planned if self._owns(run, owners)]
            even = _share(len(planned), self.gpus) - len(own)
            if sum(not is_made(run) for run in own) < self.batch_size:
                even = max(even, _share(left, self.gpus))
            quota = min(self.batch_size, even)
            taken: list[str] = []
            for run in self._in_order(planned, owners):
                if len(taken) == limit:
                    break
                mine = self._owns(run, owners)
                claimable = run not in owners and quota > 0
                if not (mine or claimable) or is_made(run):
                    continue
                taken.append(run)
                if claimable:
                    owners[run] = Claim(self.gpu, ahead=True)
                    quota -= 1
                    left -= 1
            return taken, left > 0 or len(taken) == limit

    def _owns(self, run: str, owners: Mapping[str, Claim]) -> bool:
        return run in owners and owners[run].gpu == self.gpu

    def _in_order(self, planned: Sequence[str], owners: Mapping[str, Claim]) -> list[str]:
        """Dialogues that this GPU has runs of, then untouched ones: runs of a dialogue share what
        precedes their first eviction."""
        mine = {dialogue_of(run) for run in owners if self._owns(run, owners)}
        touched = {dialogue_of(run) for run in owners}

        def rank(run: str) -> int:
            dialogue = dialogue_of(run)
            return 0 if dialogue in mine else 2 if dialogue in touched else 1

        return sorted(planned, key=rank)


def owner(run: str, gpus: int) -> Claim | None:
    """The claim on a run, if any."""
    with _owners(gpus) as owners:
        return owners.get(run)


def claim(run: str, gpu: int, gpus: int) -> int:
    """Note that a run's job has a GPU: `gpu`, unless the run belongs to one already.

    Returns:
        The number of the GPU that it belongs to.
    """
    with _owners(gpus) as owners:
        number = owners[run].gpu if run in owners else gpu
        owners[run] = Claim(number, ahead=False)
        return number


def give_up(run: str, gpu: int, gpus: int) -> None:
    """Drop what a worker of `gpu` looked ahead at of the run's model, and no job has asked for."""
    model = f"{RunKey.from_path(run).model}/"
    with _owners(gpus) as owners:
        for other, found in list(owners.items()):
            if found == Claim(gpu, ahead=True) and other.startswith(model):
                del owners[other]


def fewest_first(gpus: int) -> list[int]:
    """The GPUs' numbers, the one with the fewest claims first."""
    with _owners(gpus) as owners:
        counts = Counter(found.gpu for found in owners.values())
    return sorted(range(gpus), key=counts.__getitem__)


def _share(runs: int, gpus: int) -> int:
    return -(-runs // gpus)


@contextlib.contextmanager
def _owners(gpus: int) -> Iterator[dict[str, Claim]]:
    """The claims; what is changed is kept. Other processes wait meanwhile.

    Each line of the file has a GPU's number, with a `+` if claimed ahead, and a run; the last one
    of a run counts.
    """
    path = socket_folder() / f"{workflow_digest()}-claims.txt"
    with path.open("a+", encoding="utf-8") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        file.seek(0)
        head, *lines = file.read().split("\n")
        expected = f"{_plan()} {gpus}"
        if head != expected:
            file.truncate(0)
            file.write(f"{expected}\n")
            lines = [""]
        owners: dict[str, Claim] = {}
        for line in lines:
            number, _, run = line.partition(" ")
            if number.removesuffix("+").isdecimal() and run:
                owners[run] = Claim(int(number.removesuffix("+")), number.endswith("+"))
        known = dict(owners)
        yield owners
        if known.keys() - owners.keys():
            file.truncate(0)
            file.write(f"{expected}\n{_lines(owners)}")
            return
        # The last line is empty, unless a process was killed while it wrote.
        added = _lines({run: found for run, found in owners.items() if known.get(run) != found})
        file.write(("\n" if lines[-1:] != [""] else "") * bool(added) + added)


def _lines(owners: Mapping[str, Claim]) -> str:
    return "".join(f"{found.gpu}{'+' * found.ahead} {run}\n" for run, found in owners.items())


def _plan() -> str:
    """What tells a list of planned runs from an earlier one."""
    try:
        status = PLANNED_RUNS.stat()
    except FileNotFoundError:
        return "none"
    return f"{status.st_ino}-{status.st_mtime_ns}"
