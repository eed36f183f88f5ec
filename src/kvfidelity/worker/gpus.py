"""Which GPU and worker a generate job uses when several jobs run at once."""

from __future__ import annotations

import contextlib
import fcntl
import itertools
import os
import re
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO, NamedTuple

from kvfidelity.errors import UserError
from kvfidelity.worker.claims import claim, fewest_first, give_up, owner
from kvfidelity.worker.socket_path import WORKER_VARIABLE, socket_folder, workflow_digest

POLL_S = 0.1


class Gpu(NamedTuple):
    """A GPU that a job uses: its number, from 0, and environment variables for the job and its
    worker. With several workers on a GPU each is counted as one: those of 2 GPUs are 0, 2, .. and
    1, 3, .."""

    number: int
    environment: dict[str, str]


@contextlib.contextmanager
def gpu_share(
    gpus: int,
    jobs_per_worker: int,
    device: str,
    run: str | None = None,
    kind: str = "gpu",
    workers_per_gpu: int = 1,
    serves: Callable[[dict[str, str]], bool] = lambda environment: True,
) -> Iterator[Gpu]:
    """Hold one of `jobs_per_worker` shares of a worker of one of `gpus` GPUs; wait until one is
    free.

    Jobs are spread evenly over the workers. A share is a file lock, so it ends with its process.
    With a single worker nothing is locked: it limits the number of active runs itself.

    Args:
        gpus: Snakemake's resource `gpu`. On a CPU: the number of workers that share it.
        jobs_per_worker: generate jobs that run at once in each worker.
        device: as in the config.
        run: a run that workers may compute ahead of this job. The job gets the GPU that the run
            belongs to (`claims`), without a share: its worker has counted that run already.
        kind: jobs of another kind have other shares.
        workers_per_gpu: workers on each GPU.
        serves: whether the worker with these environment variables serves what the job asks for.
            Where it does not, what it looked ahead at is given up.

    Raises:
        UserError: more GPUs than are visible, or a device with a fixed number such as cuda:0.
    """
    workers = gpus * workers_per_gpu
    if workers == 1:
        yield Gpu(0, {})
        return
    environments = _environments(gpus, workers_per_gpu, device)
    while True:
        claimed = owner(run, workers) if run else None
        if run and claimed and claimed.ahead and not serves(environments[claimed.gpu]):
            give_up(run, claimed.gpu, workers)
            claimed = None
        with contextlib.ExitStack() as held:
            if run and claimed:
                number: int | None = claim(run, claimed.gpu, workers)
            else:
                # Of GPUs with equally many shares, one whose worker has no jobs yet gets the first.
                order = fewest_first(workers) if run else range(workers)
                number = _take_share(held, kind, order, jobs_per_worker)
                if number is not None and run and claim(run, number, workers) != number:
                    continue  # a worker has looked ahead at it meanwhile
            if number is not None:
                yield Gpu(number, environments[number])
                return
        time.sleep(POLL_S)


def _take_share(
    held: contextlib.ExitStack, kind: str, gpus: Sequence[int], jobs_per_worker: int
) -> int | None:
    """Lock a free share, of a GPU with the fewest; the GPU's number, None if no share is free.

    Args:
        gpus: their numbers; of those with equally many shares the first counts.
    """
    for share, number in itertools.product(range(jobs_per_worker), gpus):
        path = socket_folder() / f"{workflow_digest()}-{kind}-{number}-{share}.lock"
        with contextlib.ExitStack() as opened:
            if _locked(opened.enter_context(path.open("w"))):
                held.push(opened.pop_all())
                return number
    return None


def visible_gpus() -> list[str]:
    """The GPUs that this process may use, as names for CUDA_VISIBLE_DEVICES."""
    given = os.environ.get("CUDA_VISIBLE_DEVICES")
    if given is not None:
        return [name.strip() for name in given.split(",") if name.strip()]
    devices = Path("/dev").glob("nvidia*")
    count = sum(bool(re.fullmatch(r"nvidia\d+", device.name)) for device in devices)
    return [str(number) for number in range(count)]


def _locked(file: IO[str]) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _environments(gpus: int, workers_per_gpu: int, device: str) -> list[dict[str, str]]:
    """Of each worker: the first of each GPU, then the second of each."""
    own = [{}] if gpus == 1 else _gpu_environments(gpus, device)
    if workers_per_gpu == 1:
        return own
    return [
        environment | {WORKER_VARIABLE: f"{environment.get(WORKER_VARIABLE, '')}.{number}"}
        for number in range(workers_per_gpu)
        for environment in own
    ]


def _gpu_environments(count: int, device: str) -> list[dict[str, str]]:
    gpus = [] if device == "cpu" else visible_gpus()
    if device.startswith("cuda:"):
        raise UserError(
            f"device {device} is one GPU, but {count} are to be used (--resources gpu={count}): "
            "write `device: cuda` in the config, or use gpu=1"
        )
    if not gpus:
        return [{WORKER_VARIABLE: str(number)} for number in range(count)]
    if len(gpus) < count:
        raise UserError(
            f"{count} GPUs are to be used (--resources gpu={count}), but {len(gpus)} are visible "
            f"here ({', '.join(gpus)}): use gpu={len(gpus)}"
        )
    return [{"CUDA_VISIBLE_DEVICES": name} for name in gpus[:count]]
