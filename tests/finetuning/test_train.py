"""Training an adapter: what it learns, that it is reproducible, and what a kill changes."""

from __future__ import annotations

import contextlib
import gc
import io
import json
import os
import resource
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel

from kvfidelity.cli import main_guard
from kvfidelity.dialogues.pool import Turn
from kvfidelity.dialogues.segments import ChatSegmenter
from kvfidelity.errors import UserError
from kvfidelity.finetuning import train
from kvfidelity.finetuning.checkpoint import (
    DIGEST_BYTES,
    NAME,
    Checkpoint,
    read_checkpoint,
    write_checkpoint,
)
from kvfidelity.finetuning.examples import Example
from kvfidelity.finetuning.extraction import example_of
from kvfidelity.finetuning.recipe import Recipe
from kvfidelity.finetuning.train import Trainer, stretches_of
from kvfidelity.models.checksums import file_digests
from kvfidelity.models.load import load_model
from kvfidelity.records.arms import ARMS, LOSSES
from tests.finetuning import small
from tests.finetuning.small import ADAPTER, base_model, dialogues, extracted, finetune

STEPS = 12


def recipe(**other: Any) -> Recipe:
    return Recipe.of(ADAPTER | other)


def examples(base: Path) -> list[Example]:
    _, tokenizer = load_model(base, "float32", "cpu")
    segmenter = ChatSegmenter(tokenizer)
    turns = [[Turn(f"Say {n} {k}.", f"{k} and {n}" * 3) for k in range(4)] for n in range(5)]
    return [example_of(turn, segmenter) for turn in turns]


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


def test_under_kl_the_control_stays_the_base_model(tmp_path: Path) -> None:
    """Its target is itself: rounding alone moves its weights. With cross-entropy it learns."""
    base = base_model(tmp_path)
    losses = trained(base, tmp_path / "kl", arm="control", steps=12).losses
    assert max(losses) < 1e-3
    learns = trained(
        base, tmp_path / "ce", arm="control", steps=12, loss="cross_entropy", learning_rate=0.01
    ).losses
    assert learns[0] - learns[-1] > 0.1


def test_arms_of_a_seed_see_the_same_keep_sets(tmp_path: Path) -> None:
    [example, *_] = examples(base_model(tmp_path))
    seen = [
        stretches_of(example, recipe(arm=arm), Random("evictions 0 3"), 512)
        for arm in ("stale", "rerotated")
    ]
    assert len(seen[0]) > 1
    for stale, rerotated in zip(*seen, strict=True):
        assert torch.equal(stale.earlier, rerotated.earlier)


@pytest.mark.long(25)
def test_a_training_killed_three_times_ends_with_the_same_loss_curve(tmp_path: Path) -> None:
    """A real SIGKILL after two random steps, and one in the middle of writing a checkpoint."""
    base, data = base_model(tmp_path), dialogues(tmp_path)
    rng = Random(os.urandom(8))
    first = rng.randint(1, 4)
    kills: list[int | str] = [first, "write", rng.randint(8, STEPS - 1), 0]
    started = _killed(tmp_path, kills)
    # A checkpoint is written every two steps: the first kill keeps the latest of them, the second
    # writes one and half of another.
    kept = first - first % 2
    latest = int(kills[2]) - int(kills[2]) % 2
    assert started == [[0, 9], [kept, 9], [kept + 2, 9], [latest, 0]], kills
    torch.use_deterministic_algorithms(True)
    try:
        finetune(base, data, tmp_path / "whole", tmp_path / "undisturbed", steps=STEPS)
    finally:
        torch.use_deterministic_algorithms(False)
    curves, weights = [], []
    for name in ("whole", "killed"):
        folder = tmp_path / name
        curves.append(json.loads((folder / "training.json").read_text()))
        weights.append((folder / "model.safetensors").read_bytes())
    assert curves[0] == curves[1] and len(curves[0]["losses"]) == STEPS
    assert weights[0] == weights[1]
    assert not (tmp_path / "checkpoints").exists()


def _killed(root: Path, kills: list[int | str]) -> list[list[int]]:
    """What `stepwise` prints: steps done at each start, and the signal that ended it."""
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "tests.finetuning.stepwise",
            str(root),
            str(STEPS),
            json.dumps(kills),
        ],
        cwd=Path(__file__).parents[2],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found: list[list[int]] = json.loads(done.stdout.splitlines()[-1])
    return found


def test_the_device_is_taken_for_the_steps_alone(tmp_path: Path) -> None:
    base, seen = base_model(tmp_path / "base"), list[str]()
    file = extracted(base, dialogues(tmp_path))

    @contextlib.contextmanager
    def place() -> Iterator[str]:
        seen.append("taken")
        yield "cpu"
        assert not (tmp_path / "tuned").exists()
        trained = [one for one in gc.get_objects() if isinstance(one, Trainer | PreTrainedModel)]
        assert not trained, "what holds the device's memory is gone"
        seen.append("left")

    def progress(step: int, loss: float) -> None:
        seen.append(f"step {step}")

    small.train(base, file, tmp_path / "tuned", tmp_path / "kept", progress=progress, place=place())
    assert seen == ["taken", *(f"step {n + 1}" for n in range(ADAPTER["steps"])), "left"]
    assert (tmp_path / "tuned").is_dir()
    (base / "config.json").write_text("{")
    with pytest.raises(UserError):
        small.train(base, file, tmp_path / "again", tmp_path / "kept", place=place())
    assert seen[-1] == "left", "what is wrong with the base is said before a device is taken"


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


def test_a_training_that_diverges_is_refused_and_leaves_no_model(tmp_path: Path) -> None:
    """Weights that are not finite are never written, neither as a model nor in a checkpoint."""
    base, data = base_model(tmp_path), dialogues(tmp_path)
    with pytest.raises(UserError, match=r"diverged: the loss of step \d .* lower `learning_rate`"):
        finetune(base, data, tmp_path / "m", tmp_path / "c", every=1, steps=6, learning_rate=1e30)
    assert not (tmp_path / "m").exists()
    saved = torch.load(
        io.BytesIO((tmp_path / "c" / NAME).read_bytes()[DIGEST_BYTES:]), weights_only=True
    )
    assert all(bool(weight.isfinite().all()) for weight in saved["adapter"].values())


@pytest.mark.parametrize(
    ("recipe", "message"),
    [
        ({"dialogues": 900}, r"adapter\.dialogues is 900, but only \d+ dialogues .*other_split: "),
        ({}, r"more than the base model's trained window of 64.*max_tokens to 64 at most"),
    ],
)
def test_too_few_and_too_long_dialogues_are_refused_without_weights(
    tmp_path: Path, recipe: dict[str, Any], message: str
) -> None:
    base, data = base_model(tmp_path), dialogues(tmp_path)
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps(config | {"max_position_embeddings": 64}))
    (base / "model.safetensors").unlink()
    with pytest.raises(UserError, match=message):
        extracted(base, data, **recipe)
    assert not data.with_name("dialogues.json").exists()


@pytest.mark.parametrize("loss", LOSSES)
def test_logits_of_a_whole_dialogue_are_never_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, loss: str
) -> None:
    """Nor does it change the loss or its gradient that they are computed in parts."""
    base, found = base_model(tmp_path), []
    for tokens in (10**6, 7):
        monkeypatch.setattr(train, "LOSS_TOKENS", tokens)
        model, _ = load_model(base, "float32", "cpu")
        trainer = Trainer(model, recipe(loss=loss), examples(base))
        vocabulary, rows = model.config.vocab_size, list[int]()

        def note(tensor: torch.Tensor, rows: list[int] = rows, size: int = vocabulary) -> Any:
            # One step's weights of the output layer are not logits.
            if tensor.dim() == 2 and tensor.shape[-1] == size and not tensor.is_leaf:
                rows.append(tensor.shape[0])
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            trainer.run(tmp_path / f"{loss} {tokens}", "identity")
        found.append((trainer.losses, sum(rows)))
    (whole, _), (parts, kept) = found
    assert parts == pytest.approx(whole, rel=1e-4)
    assert kept <= 7


def test_a_full_disk_at_the_merge_is_one_line_and_costs_no_step(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A real short write of the weights, which safetensors reports; the rerun trains nothing."""
    base, data, steps = base_model(tmp_path), dialogues(tmp_path), list[int]()
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    half = (base / "model.safetensors").stat().st_size // 2

    def fill(step: int, loss: float) -> None:
        steps.append(step)
        if step == 2:
            resource.setrlimit(resource.RLIMIT_FSIZE, (half, before[1]))

    def once() -> None:
        finetune(base, data, tmp_path / "m", tmp_path / "c", steps=2, progress=fill)

    try:
        with pytest.raises(SystemExit):
            main_guard(once)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert "error: the output folder would be larger than this process" in capsys.readouterr().err
    assert not [*tmp_path.glob("m*"), *tmp_path.glob(".m*")]
    once()
    assert steps == [1, 2] and (tmp_path / "m/model.safetensors").is_file()


def test_a_recipe_that_changes_while_it_trains_starts_from_the_first_step(tmp_path: Path) -> None:
    """So does another base; the same ones go on."""
    base, data, steps = base_model(tmp_path), dialogues(tmp_path), list[int]()

    def interrupt(step: int, loss: float) -> None:
        steps.append(step)
        if step == 2:
            raise KeyboardInterrupt

    def first_step(**other: Any) -> int:
        steps.clear()
        with pytest.raises(KeyboardInterrupt):
            finetune(
                base, data, tmp_path / "m", tmp_path / "c", every=1, progress=interrupt, **other
            )
        return steps[0]

    assert [first_step(), first_step(steps=2, learning_rate=0.5)] == [1, 1]
    assert first_step(retention=[0.3, 0.6]) == 1
    weights = load_file(base / "model.safetensors")
    save_file({name: 2 * one for name, one in weights.items()}, base / "model.safetensors")
    record = json.loads((base / "provenance.json").read_text())
    (base / "provenance.json").write_text(json.dumps(record | {"files": file_digests(base)}))
    assert first_step(retention=[0.3, 0.6]) == 1
    steps.clear()
    finetune(
        base,
        data,
        tmp_path / "m",
        tmp_path / "c",
        retention=[0.3, 0.6],
        progress=lambda step, loss: steps.append(step),
    )
    assert steps == [3]
