"""A tiny base model, dialogues to train on, and a recipe of a second."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from kvfidelity.finetuning.examples import chosen_by
from kvfidelity.finetuning.extraction import extract_training_dialogues
from kvfidelity.finetuning.model_folder import finetune_model
from kvfidelity.models.fetch import fetch_model
from tests.models.tiny import tiny_llama, tiny_tokenizer

ADAPTER: dict[str, Any] = {
    "base": "tiny",
    "data": "mine",
    "arm": "stale",
    "seed": 0,
    "steps": 3,
    "batch": 2,
    "rank": 2,
    "learning_rate": 0.001,
    "loss": "kl",
    "retention": [0.25, 0.99],
    "dialogues": 8,
    "select": {"min_turns": 3, "max_tokens": 400},
    "base_source": {"source": "path", "path": "given"},
    "data_source": {"source": "path", "path": "data.json", "format": "sharegpt"},
}


CPU = contextlib.nullcontext("cpu")


def base_model(folder: Path) -> Path:
    """A fetched tiny model in `folder/base`."""
    if not (folder / "base").is_dir():
        # With default initialisation attention is almost uniform, whatever the positions.
        model = tiny_llama()
        with torch.no_grad():
            for weight in model.parameters():
                if weight.dim() > 1:
                    weight.normal_(0, 0.25)
        model.save_pretrained(folder / "given")
        tiny_tokenizer().save_pretrained(folder / "given")
        fetch_model({"source": "path", "path": str(folder / "given")}, folder / "base")
    return folder / "base"


def dialogues(folder: Path, number: int = 40) -> Path:
    """A fetched data set of short dialogues in `folder/data`."""
    records = [
        {
            "id": f"d{n}",
            "conversations": [
                {"from": speaker, "value": f"{word} {n} in turn {k}"}
                for k in range(4)
                for speaker, word in (("human", "Count to"), ("gpt", "I counted to"))
            ],
        }
        for n in range(number)
    ]
    data = folder / "data"
    data.mkdir(parents=True, exist_ok=True)
    (data / "data.json").write_text(json.dumps(records))
    (data / "provenance.json").write_text("{}")
    return data


def extracted(base: Path, data: Path, **other: Any) -> Path:
    """The file of training dialogues next to the data."""
    file = data.with_name("dialogues.json")
    extract_training_dialogues(chosen_by(ADAPTER | other), base, data, file)
    return file


def finetune(
    base: Path,
    data: Path,
    directory: Path,
    checkpoints: Path,
    *,
    every: int = 2,
    progress: Callable[[int, float], None] = lambda step, loss: None,
    **other: Any,
) -> None:
    """Extract the training dialogues and make a fine-tuned model folder."""
    file = extracted(base, data, **other)
    train(base, file, directory, checkpoints, every=every, progress=progress, **other)


def train(
    base: Path,
    file: Path,
    directory: Path,
    checkpoints: Path,
    *,
    every: int = 2,
    progress: Callable[[int, float], None] = lambda step, loss: None,
    place: contextlib.AbstractContextManager[str] = CPU,
    **other: Any,
) -> None:
    """Make a fine-tuned model folder of extracted dialogues."""
    spec = {"source": "adapter", "adapter": ADAPTER | other, "code": "0"}
    finetune_model(spec, base, file, directory, checkpoints, place, every=every, progress=progress)
