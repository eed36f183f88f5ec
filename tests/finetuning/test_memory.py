"""What a training keeps in memory, and what it does when memory runs out."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from kvfidelity.finetuning import memory, train
from kvfidelity.finetuning.memory import held_by_others, with_memory
from kvfidelity.finetuning.train import Trainer
from kvfidelity.models.load import load_model
from kvfidelity.records.arms import ARMS
from tests.finetuning.small import base_model
from tests.finetuning.test_train import examples, recipe, trained

CPU = torch.device("cpu")


@pytest.mark.parametrize("arm", ARMS)
def test_recomputed_layers_give_the_same_training_and_keep_a_fraction(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arm: str
) -> None:
    base, found = base_model(tmp_path), []
    for recomputed in (True, False):
        if not recomputed:
            monkeypatch.setattr(train, "recompute_layers", lambda decoder: None)
        model, _ = load_model(base, "float32", "cpu")
        trainer = Trainer(model, recipe(arm=arm), examples(base))
        kept: dict[int, int] = {}

        def note(tensor: torch.Tensor, kept: dict[int, int] = kept) -> Any:
            # By storage, once each; weights are kept anyhow.
            if not tensor.is_leaf:
                kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        [(example, stretches), *_] = trainer._batch(0)
        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            trainer._loss(example, stretches)
        trainer.run(tmp_path / f"{arm} {recomputed}", "identity")
        found.append((trainer.losses, trainer.adapter(), sum(kept.values())))
    (losses, weights, few), (others, other_weights, many) = found
    assert losses == others
    assert all(torch.equal(weights[name], other_weights[name]) for name in weights)
    assert few < many / 4


def test_a_step_without_memory_is_made_again_as_if_it_had_been_the_first_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base, failures = base_model(tmp_path), [True, True]
    undisturbed = trained(base, tmp_path / "one")
    own = Trainer._loss

    def without_memory(self: Trainer, example: Any, stretches: Any) -> torch.Tensor:
        # Once the first dialogue of a step has left its gradient.
        if failures and any(weight.grad is not None for weight in self._weights):
            failures.pop()
            raise torch.OutOfMemoryError("CUDA out of memory")
        return own(self, example, stretches)

    monkeypatch.setattr(Trainer, "_loss", without_memory)
    monkeypatch.setattr(memory, "held_by_others", lambda device: True)
    monkeypatch.setattr(memory, "WAITS_S", (0.0, 0.0))
    disturbed = trained(base, tmp_path / "other")
    assert not failures and disturbed.losses == undisturbed.losses
    weights, others = disturbed.adapter(), undisturbed.adapter()
    assert all(torch.equal(weights[name], others[name]) for name in weights)


def no_memory() -> None:
    raise torch.OutOfMemoryError("CUDA out of memory")


def test_what_others_do_not_hold_or_do_not_give_back_is_an_error(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    waited: list[float] = []
    monkeypatch.setattr(memory.time, "sleep", waited.append)
    with pytest.raises(torch.OutOfMemoryError):
        with_memory(no_memory, CPU)
    assert not waited
    monkeypatch.setattr(memory, "held_by_others", lambda device: True)
    with pytest.raises(torch.OutOfMemoryError):
        with_memory(no_memory, CPU)
    assert waited == list(memory.WAITS_S)


HOLDER = """
import sys, torch
held = torch.empty(3 * 10**9, dtype=torch.uint8, device="cuda")
torch.cuda.synchronize()
print("held", flush=True)
sys.stdin.read()
"""


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="PyTorch sees no GPU here")
def test_on_a_gpu_it_waits_for_what_another_process_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu, sizes = torch.device("cuda"), [4 * torch.cuda.mem_get_info()[1], 1]
    monkeypatch.setattr(memory, "WAITS_S", (0.0,))
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as holder:
        assert holder.stdout and holder.stdin
        assert holder.stdout.readline() == "held\n"
        assert held_by_others(gpu)
        taken = with_memory(
            lambda: torch.empty(sizes.pop(0), dtype=torch.uint8, device="cuda"), gpu
        )
        holder.stdin.close()
    assert taken.numel() == 1 and not sizes
