"""A training that waits for a line of its input after each step, for a test that kills it.

`python -m tests.finetuning.stepwise FOLDER STEPS KILL`
"""

import sys
from pathlib import Path

import torch

from tests.finetuning.small import base_model, dialogues, finetune


def wait(step: int, loss: float) -> None:
    print(f"step {step}", flush=True)
    sys.stdin.readline()


if __name__ == "__main__":
    torch.use_deterministic_algorithms(True)
    root, steps = Path(sys.argv[1]), int(sys.argv[2])
    finetune(
        base_model(root),
        dialogues(root),
        root / "killed",
        root / "checkpoints",
        steps=steps,
        progress=wait,
    )
