"""Training an adapter: what it learns, that it is reproducible, and what a kill changes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch

from kvfidelity.dialogues.segments import ChatSegmenter
from kvfidelity.dialogues.pool import Turn
from kvfidelity.finetuning.checkpoint import NAME, Checkpoint, read_checkpoint, write_checkpoint
from kvfidelity.finetuning.examples import Example, _example
from kvfidelity.finetuning.recipe import ARMS, Recipe
from kvfidelity.finetuning.train import Trainer, stretches_of
from kvfidelity.models.load import load_model
from tests.finetuning.small import ADAPTER, base_model, dialogues, finetune

STEPS = 12


def recipe(**other: Any) -> Recipe:
    return Recipe.of(ADAPTER | other)


def examples(base: Path) -> list[Example]:
    _, tokenizer = load_model(base, "float32", "cpu")
    segmenter = ChatSegmenter(tokenizer)
    turns = [[Turn(f"Say {n} {k}.", f"{k} and {n}" * 3) for k in range(4)] for n in range(5)]
    return [_example(turn, segmenter) for turn in turns]


def trained(base: Path, folder: Path, **other: Any) -> Trainer:
    model, _ = load_model(base, "float32", "cpu")
    trainer = Trainer(model, recipe(**other), examples(base))
    trainer.run(folder, "identity")
    return trainer


def test_an_example_says_where_turns_start_and_which_tokens_are_replies(tmp_path: Path) -> None:
    base = base_model(tmp_path)
    _, tokenizer = load_model(base, "float32", "cpu")
    [first, *_] = examples(base)
    texts = [tokenizer.decode(first.ids[slice(*span)]) for span in first.replies]
    assert texts == [f"{k} and 0" * 3 + "<|im_end|>" for k in range(4)]
    assert len(first.boundaries) == 3
    for at in first.boundaries:
        assert tokenizer.decode(first.ids[at:]).lstrip("\n").startswith("<|im_start|>user")


@pytest.mark.parametrize("arm", ARMS)
def test_an_arms_loss_falls_and_two_trainings_are_the_same(tmp_path: Path, arm: str) -> None:
    base = base_model(tmp_path)
    one, other = (trained(base, tmp_path / name, arm=arm, steps=2) for name in "ab")
    assert one.losses == other.losses
    for name, weight in one.adapter().items():
        assert torch.equal(weight, other.adapter()[name]), name


def test_cross_entropy_falls(tmp_path: Path) -> None:
    losses = trained(
        base_model(tmp_path), tmp_path, loss="cross_entropy", steps=20, learning_rate=0.01
    ).losses
    assert sum(losses[-3:]) < 0.9 * sum(losses[:3])


def test_the_control_starts_without_a_loss_and_evictions_with_one(tmp_path: Path) -> None:
    """The fresh adapter changes nothing, and the target is the model itself."""
    base = base_model(tmp_path)
    first = {arm: trained(base, tmp_path / arm, arm=arm, steps=1).losses[0] for arm in ARMS}
    assert first.pop("control") == pytest.approx(0, abs=1e-9)
    assert min(first.values()) > 1e-4


def test_arms_of_a_seed_see_the_same_keep_sets(tmp_path: Path) -> None:
    [example, *_] = examples(base_model(tmp_path))
    seen = [
        stretches_of(example, recipe(arm=arm), Random("evictions 0 3"), 512)
        for arm in ("stale", "rerotated")
    ]
    assert len(seen[0]) > 1
    for stale, rerotated in zip(*seen, strict=True):
        assert torch.equal(stale.earlier, rerotated.earlier)


def test_a_training_killed_three_times_ends_with_the_same_loss_curve(tmp_path: Path) -> None:
    """A real SIGKILL, at random steps, once in the middle of writing a checkpoint."""
    data, base = dialogues(tmp_path), base_model(tmp_path)
    finetune(base, data, tmp_path / "whole", tmp_path / "undisturbed", steps=STEPS)
    rng = Random(str(tmp_path))
    kills = [*sorted(rng.sample(range(1, STEPS - 1), 3)), 0]
    started = [_until_killed(tmp_path, base, data, kill) for kill in kills]
    assert started[0] == 0 and started[-1] > 0, "it went on from a checkpoint"
    curves, weights = [], []
    for name in ("whole", "killed"):
        folder = tmp_path / name
        curves.append(json.loads((folder / "training.json").read_text()))
        weights.append((folder / "model.safetensors").read_bytes())
    assert curves[0] == curves[1] and len(curves[0]["losses"]) == STEPS
    assert weights[0] == weights[1]
    assert not (tmp_path / "checkpoints").exists()


def _until_killed(root: Path, base: Path, data: Path, kill: int) -> int:
    """Run a training in a process of its own and kill it at step `kill`; 0 lets it end.

    It waits for a line after each step, so no step is done after the kill. Returns the number of
    steps that it started from.
    """
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.finetuning.stepwise", str(root), str(STEPS), str(kill)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[2],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert process.stdin and process.stdout
    started = None
    for line in process.stdout:
        if not line.startswith("step "):
            continue
        step = int(line.split()[1])
        started = step - 1 if started is None else started
        if step == kill:
            process.send_signal(signal.SIGKILL)
            break
        process.stdin.write("\n")
        process.stdin.flush()
    process.stdin.close()
    code = process.wait()
    assert code == (-signal.SIGKILL if kill else 0)
    assert started is not None
    return started


def test_half_a_checkpoint_is_never_loaded(tmp_path: Path) -> None:
    whole = Checkpoint("a", [0.5], {"w": torch.ones(3)}, {})
    write_checkpoint(tmp_path, whole)
    content = (tmp_path / NAME).read_bytes()
    found = read_checkpoint(tmp_path, "a")
    assert found is not None and found.losses == [0.5]
    assert read_checkpoint(tmp_path, "b") is None, "of another training"
    for size in (0, 10, 32, len(content) // 2, len(content) - 1):
        (tmp_path / NAME).write_bytes(content[:size])
        assert read_checkpoint(tmp_path, "a") is None
    changed = bytearray(content)
    changed[-20] ^= 1
    (tmp_path / NAME).write_bytes(changed)
    assert read_checkpoint(tmp_path, "a") is None
