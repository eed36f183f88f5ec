"""Makes a model folder of a base model and a recipe: trained, merged, with its provenance."""

from __future__ import annotations

import gc
import hashlib
import json
import shutil
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from peft import set_peft_model_state_dict
from torch import Tensor
from transformers.utils import logging as hf_logging

from kvfidelity.atomic_files import give_usual_modes, write_json
from kvfidelity.bounded_json import read_json
from kvfidelity.finetuning.examples import examples_digest, read_examples
from kvfidelity.finetuning.memory import with_memory
from kvfidelity.finetuning.recipe import Recipe
from kvfidelity.finetuning.train import CHECKPOINT_EVERY, Trainer, with_adapter
from kvfidelity.models.checksums import LOSS_CURVE, PROVENANCE, WEIGHTS, file_digests
from kvfidelity.models.load import load_model, resolve_device
from kvfidelity.models.revision import model_revision
from kvfidelity.models.weights import load_weights


def finetune_model(
    spec: Mapping[str, Any],
    base: Path,
    dialogues: Path,
    directory: Path,
    checkpoints: Path,
    place: AbstractContextManager[str],
    *,
    every: int = CHECKPOINT_EVERY,
    progress: Callable[[int, float], None] = lambda step, loss: None,
) -> None:
    """Make `directory` a model folder like a fetched one, whole or not at all.

    Weights are the base's with the adapter merged into them, in fp32.

    Args:
        spec: `source` and `adapter` of the model's entry, checked and resolved; `code`, a digest of
            the code that trains.
        base: folder of the fetched base model.
        dialogues: file of the training dialogues, see `extraction.extract_training_dialogues`.
        checkpoints: a folder that survives a kill; it is removed at the end.
        place: entered for the steps alone, so that another training can use the device while this
            one loads, merges and writes; gives "cpu", "cuda", "cuda:1" or "auto".

    Raises:
        UserError: the base cannot be used, the dialogues are damaged or were extracted for another
            base or recipe, or the training diverges.
    """
    adapter = spec["adapter"]
    recipe = Recipe.of(adapter)
    fetched = read_json(base / PROVENANCE)
    # What is wrong with the dialogues is said before a GPU is used.
    examples, facts = read_examples(dialogues, fetched["files"], adapter)
    model, _ = load_model(base, "float32", "cpu")
    made_from = {
        "base": fetched["files"],
        "dialogues": {"number": len(examples), "sha256": examples_digest(examples)},
    }
    text = json.dumps([adapter, made_from, spec["code"]], sort_keys=True)
    print(f"{len(examples)} dialogues, {sum(len(one.ids) for one in examples)} tokens")
    identity = hashlib.sha256(text.encode()).hexdigest()
    with place as device:
        used = resolve_device(device)
        trainer = Trainer(with_memory(partial(model.to, used), used), recipe, examples)
        trainer.run(checkpoints, identity, every=every, progress=progress)
        weights, losses = trainer.adapter(), trainer.losses
        del model, trainer
        gc.collect()  # modules refer to each other
        torch.cuda.empty_cache()
    folder = directory.with_name(f".{directory.name}.partial")
    shutil.rmtree(folder, ignore_errors=True)
    try:
        folder.mkdir(parents=True)
        for name in fetched["files"]:
            if not name.endswith((*WEIGHTS, ".index.json")):
                shutil.copyfile(base / name, folder / name)
        _merge(base, recipe, weights, folder)
        give_usual_modes(folder)
        write_json(folder / LOSS_CURVE, {"loss": recipe.loss, "losses": losses})
        provenance = {
            "source": "adapter",
            "revision": model_revision(spec),
            "adapter": dict(adapter),
            "made_from": made_from | {"data": facts["manifest"]["provenance"]},
            "files": file_digests(folder),
            # The architecture is the base's, so are the laws' deviations.
            "exactness": fetched["exactness"],
        }
        write_json(folder / PROVENANCE, provenance)
        shutil.rmtree(directory, ignore_errors=True)
        folder.rename(directory)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    shutil.rmtree(checkpoints, ignore_errors=True)


def _merge(base: Path, recipe: Recipe, adapter: Mapping[str, Tensor], folder: Path) -> None:
    """Write the base's weights plus the adapter's as safetensors into `folder`.

    On a fresh copy of the base: the one that was trained has other modules.
    """
    hf_logging.disable_progress_bar()
    model = with_adapter(load_weights(base, torch.float32), recipe)
    set_peft_model_state_dict(model, dict(adapter))
    scratch = folder / ".weights"
    model.merge_and_unload().save_pretrained(scratch)
    # Its configuration is the base's own file, which says all that is to be said.
    for file in scratch.glob("*.safetensors*"):
        file.rename(folder / file.name)
    shutil.rmtree(scratch)
