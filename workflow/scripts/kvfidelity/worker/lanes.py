"""As many generate jobs at once as a machine has GPUs, each with its own GPU and worker."""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from kvfidelity.errors import UserError
from kvfidelity.worker.place import LANE, folder, workflow

POLL_S = 0.1


@contextlib.contextmanager
def lane(at_once: int, device: str) -> Iterator[dict[str, str]]:
    """Hold one of `at_once` lanes, the first that is free; wait for one if need be.

    A lane ends with its process, however that ends.

    Args:
        at_once: generate jobs that Snakemake runs at once here, its resource `gpu`.
        device: as in the config.

    Yields:
        What to add to the environment of the worker and of what finds it.

    Raises:
        UserError: more jobs at once than GPUs are visible, or a device of a fixed number.
    """
    if at_once == 1:
        yield {}
        return
    places = _places(at_once, device)
    while True:
        for number, environment in enumerate(places):
            with (folder() / f"{workflow()}-lane-{number}.lock").open("w") as file:
                if _locked(file):
                    yield environment
                    return
        time.sleep(POLL_S)


def visible_gpus() -> list[str]:
    """Names for CUDA_VISIBLE_DEVICES of the GPUs that this process may use."""
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


def _places(at_once: int, device: str) -> list[dict[str, str]]:
    gpus = [] if device == "cpu" else visible_gpus()
    if device.startswith("cuda:"):
        raise UserError(
            f"device {device} is one GPU, but {at_once} generate jobs run at once "
            f"(--resources gpu={at_once}): write `device: cuda` in the config, or use gpu=1"
        )
    if not gpus:
        return [{LANE: str(number)} for number in range(at_once)]
    if len(gpus) < at_once:
        raise UserError(
            f"{at_once} generate jobs at once (--resources gpu={at_once}), but {len(gpus)} GPUs "
            f"are visible here ({', '.join(gpus)}): use gpu={len(gpus)}"
        )
    return [{"CUDA_VISIBLE_DEVICES": name} for name in gpus[:at_once]]
