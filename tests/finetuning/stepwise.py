"""Trainings that are killed, one after another.

`python -m tests.finetuning.stepwise FOLDER STEPS KILLS`

KILLS is JSON: for each training a number of steps after which it is killed, "write" for a kill in
the middle of writing its second checkpoint, or 0 for one that ends. A training is a forked process,
which waits after each step until it may go on, so that no step is done after the kill. Prints, as
JSON, how many steps each had done when it started, and the signal that ended it.
"""

import json
import os
import signal
import sys
from pathlib import Path

import torch

from tests.finetuning.small import base_model, dialogues, finetune


def main(root: Path, steps: int, kills: list[int | str]) -> list[tuple[int, int]]:
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    return [one(root, steps, kill) for kill in kills]


def one(root: Path, steps: int, kill: int | str) -> tuple[int, int]:
    """Steps done at the start, and the signal that ended it, 0 for none."""
    (told, tell), (allowed, allow) = os.pipe(), os.pipe()
    process = os.fork()
    if process == 0:
        os.close(told)
        os.close(allow)
        code = 1
        try:
            train(root, steps, kill, tell, allowed)
            code = 0
        finally:
            os._exit(code)
    os.close(tell)
    os.close(allowed)
    first = None
    with os.fdopen(told) as lines:
        for line in lines:
            step = int(line)
            first = step - 1 if first is None else first
            if step == kill:
                os.kill(process, signal.SIGKILL)
                break
            os.write(allow, b".")
    os.close(allow)
    _, status = os.waitpid(process, 0)
    assert first is not None and (os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0)
    return first, os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0


def train(root: Path, steps: int, kill: int | str, tell: int, allowed: int) -> None:
    """The training of a child."""
    if kill == "write":
        die_in_the_second_write()

    def progress(step: int, loss: float) -> None:
        os.write(tell, f"{step}\n".encode())
        os.read(allowed, 1)

    finetune(
        base_model(root),
        dialogues(root),
        root / "killed",
        root / "checkpoints",
        steps=steps,
        progress=progress,
    )


def die_in_the_second_write() -> None:
    """Write half of the second checkpoint of this process, and be killed."""
    whole, sizes = Path.write_bytes, list[int]()

    def half(path: Path, data: bytes) -> int:
        sizes.append(len(data))
        if len(sizes) == 1:
            return whole(path, data)
        whole(path, data[: len(data) // 2])
        os.kill(os.getpid(), signal.SIGKILL)
        raise AssertionError

    Path.write_bytes = half  # type: ignore[assignment, method-assign]


if __name__ == "__main__":
    found = main(Path(sys.argv[1]), int(sys.argv[2]), json.loads(sys.argv[3]))
    print(json.dumps(found))
