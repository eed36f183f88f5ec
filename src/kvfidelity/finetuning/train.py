"""Trains an adapter: a short loop with checkpoints, from which a killed training goes on.

What is random is drawn from the seed and the number of the step, not from a generator that runs
along: so a checkpoint needs no state of one, all arms of a seed see the same dialogues in the same
order, and `stale` and `rerotated` the same keep sets.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from math import isfinite
from pathlib import Path
from random import Random
from typing import Any

import torch
from peft import (
    LoraConfig,
    get_peft_model,
    get_peft_model_state_dict,
    set_peft_model_state_dict,
)
from torch import Tensor
from torch.nn.functional import cross_entropy, kl_div
from torch.utils.checkpoint import checkpoint

from kvfidelity.cache.attach import attach
from kvfidelity.cache.hooks import output_logits
from kvfidelity.cache.positions import PositionMode
from kvfidelity.errors import UserError
from kvfidelity.finetuning.checkpoint import Checkpoint, read_checkpoint, write_checkpoint
from kvfidelity.finetuning.draws import draw_evictions, draw_skips
from kvfidelity.finetuning.evicted_states import Stretch, evicted, skipped
from kvfidelity.finetuning.examples import Example
from kvfidelity.finetuning.forward import hidden_states
from kvfidelity.finetuning.memory import with_memory
from kvfidelity.finetuning.recipe import Recipe
from kvfidelity.finetuning.recompute import recompute_layers
from kvfidelity.records.arms import CONTROL, CROSS_ENTROPY, SKIPS

#: Share of the steps over which the learning rate rises; then it falls to 0, both linearly.
WARMUP = 0.1
#: Largest norm of a step's gradient.
MOST_GRADIENT = 1.0
#: Steps between two checkpoints, and so the most that a kill costs.
CHECKPOINT_EVERY = 10
#: Tokens whose logits are held at once. Those of a whole dialogue are 8,000 x 150,000 numbers, in
#: fp32 5 GB, several times over.
LOSS_TOKENS = 512


def with_adapter(model: Any, recipe: Recipe) -> Any:
    """`model` with a fresh LoRA adapter on every linear layer but the output (arXiv 2106.09685).

    The adapter changes nothing yet. Its scale is 2, `lora_alpha` twice the rank.
    """
    torch.manual_seed(recipe.seed)
    config = LoraConfig(
        r=recipe.rank,
        lora_alpha=2 * recipe.rank,
        lora_dropout=0.0,
        target_modules="all-linear",
        task_type="CAUSAL_LM",
    )
    return get_peft_model(model, config)


class Trainer:
    """A model with an adapter, its optimizer, and the training dialogues.

    Args:
        model: a causal language model in fp32, on its device; it is attached and gets an adapter.
        examples: at least one.
    """

    def __init__(self, model: Any, recipe: Recipe, examples: Sequence[Example]) -> None:
        self.recipe, self.examples = recipe, examples
        self.window: int = model.config.max_position_embeddings
        self.device: torch.device = model.device
        self.model = with_adapter(attach(model), recipe).eval()
        self._base = self.model.get_base_model()
        recompute_layers(self._base.get_decoder())
        self._weights = [weight for weight in self.model.parameters() if weight.requires_grad]
        self._optimizer = torch.optim.AdamW(
            self._weights, lr=recipe.learning_rate, weight_decay=0.0
        )
        self.losses: list[float] = []

    def run(
        self,
        folder: Path,
        identity: str,
        every: int = CHECKPOINT_EVERY,
        progress: Callable[[int, float], None] = lambda step, loss: None,
    ) -> None:
        """Train to the last step, from the folder's checkpoint on if it is of this training.

        Args:
            folder: for the checkpoint.
            identity: of the training: base, data, recipe and code.
            every: steps between two checkpoints.
            progress: called with the number of steps done and the latest loss.

        Raises:
            UserError: a loss or a gradient is not finite; weights before it are.
        """
        found = read_checkpoint(folder, identity)
        if found is not None:
            self._restore(found)
        while len(self.losses) < self.recipe.steps:
            self.losses.append(self._step(len(self.losses)))
            if len(self.losses) % every == 0 or len(self.losses) == self.recipe.steps:
                write_checkpoint(folder, self._checkpoint(identity))
            progress(len(self.losses), self.losses[-1])

    def adapter(self) -> dict[str, Tensor]:
        """The adapter's weights, on the CPU."""
        state = get_peft_model_state_dict(self.model)
        return {name: weight.detach().cpu() for name, weight in state.items()}

    def _checkpoint(self, identity: str) -> Checkpoint:
        return Checkpoint(identity, self.losses, self.adapter(), self._optimizer.state_dict())

    def _restore(self, checkpoint: Checkpoint) -> None:
        set_peft_model_state_dict(self.model, checkpoint.adapter)
        self._optimizer.load_state_dict(checkpoint.optimizer)
        self.losses = list(checkpoint.losses)

    def _step(self, step: int) -> float:
        """One update over `batch` dialogues; the mean of their losses."""
        for group in self._optimizer.param_groups:
            group["lr"] = self.recipe.learning_rate * _rate(step, self.recipe.steps)
        compute = partial(self._add_gradients, step)
        total = with_memory(compute, self.device, undo=self._drop_gradients)
        norm = torch.nn.utils.clip_grad_norm_(self._weights, MOST_GRADIENT)
        if not (isfinite(total) and isfinite(float(norm))):
            raise UserError(
                f"the training diverged: the loss of step {step + 1} is {total:g} and its gradient "
                f"{float(norm):g}; lower `learning_rate` ({self.recipe.learning_rate:g})"
            )
        self._optimizer.step()
        self._drop_gradients()
        return total

    def _add_gradients(self, step: int) -> float:
        """Add the gradients of a step's dialogues; the mean of their losses."""
        total = 0.0
        for example, stretches in self._batch(step):
            loss = self._loss(example, stretches) / self.recipe.batch
            torch.autograd.backward(loss)
            total += float(loss.detach())
        return total

    def _drop_gradients(self) -> None:
        self._optimizer.zero_grad(set_to_none=True)

    def _batch(self, step: int) -> Iterator[tuple[Example, list[Stretch]]]:
        recipe, count = self.recipe, len(self.examples)
        for number in range(step * recipe.batch, (step + 1) * recipe.batch):
            epoch, place = divmod(number, count)
            order = Random(f"order {recipe.seed} {epoch}").sample(range(count), count)
            example = self.examples[order[place]]
            rng = Random(f"evictions {recipe.seed} {number}")
            yield example, stretches_of(example, recipe, rng, self.window)

    def _loss(self, example: Example, stretches: Sequence[Stretch]) -> Tensor:
        """Nats per reply token."""
        ids = torch.tensor(example.ids, device=self.device)
        replies = torch.cat([torch.arange(*span) for span in example.replies]).to(self.device)
        # The token before predicts.
        loss: Callable[[Tensor, Tensor], Tensor]
        if self.recipe.loss == CROSS_ENTROPY:
            targets, loss = ids[replies], self._cross_entropy
        else:
            targets, loss = self._full_cache(ids)[replies - 1], self._divergence
        hidden = hidden_states(self._base, ids, stretches)[replies - 1]
        parts = [
            checkpoint(loss, *part, use_reentrant=False, preserve_rng_state=False)
            for part in zip(
                torch.split(hidden, LOSS_TOKENS), torch.split(targets, LOSS_TOKENS), strict=True
            )
        ]
        return torch.stack(parts).sum() / len(replies)

    @torch.no_grad()
    def _full_cache(self, ids: Tensor) -> Tensor:
        """Hidden states [n, hidden] of the base model with nothing evicted."""
        with self.model.disable_adapter():
            return hidden_states(self._base, ids, evicted(len(ids), [], PositionMode.ORIGINAL))

    def _cross_entropy(self, hidden: Tensor, ids: Tensor) -> Tensor:
        """Nats of given tokens [t] by hidden states [t, hidden], summed."""
        return cross_entropy(output_logits(self._base, hidden).float(), ids, reduction="sum")

    def _divergence(self, hidden: Tensor, full: Tensor) -> Tensor:
        """KL(full cache || evicted state) at temperature 1 in nats, summed.

        Args:
            hidden, full: hidden states [t, hidden]. The output layer has no adapter.
        """
        own = output_logits(self._base, hidden).float().log_softmax(-1)
        with torch.no_grad():
            target = output_logits(self._base, full).float().log_softmax(-1)
        return kl_div(own, target, log_target=True, reduction="sum")


def stretches_of(example: Example, recipe: Recipe, rng: Random, window: int) -> list[Stretch]:
    """The state that an arm sees a dialogue in.

    Args:
        window: the trained one, in tokens.
    """
    tokens = len(example.ids)
    if recipe.arm == CONTROL:
        return evicted(tokens, [], PositionMode.ORIGINAL)
    evictions = draw_evictions(rng, example.boundaries, recipe.retention)
    if recipe.arm == SKIPS:
        return skipped(tokens, draw_skips(rng, evictions, tokens, window))
    return evicted(tokens, evictions, recipe.arm)


def _rate(step: int, steps: int) -> float:
    """Factor on the learning rate of a step, counted from 0."""
    warmup = max(1, round(WARMUP * steps))
    if step < warmup:
        return (step + 1) / warmup
    return (steps - step) / max(1, steps - warmup)
