"""The dialogues that a fine-tuned model is evaluated on: those of its base, taken as they are.

They depend on a model by its tokenizer and its chat template alone, which it has of its base.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import polars as pl

from kvfidelity.errors import UserError
from kvfidelity.models.checksums import LOSS_CURVE, file_digests
from kvfidelity.records.artifacts import digest, read_metadata, read_parquet

#: Notes of a pool that say how it was extracted, whatever the model.
ALIKE = ("code", "settings")


def pool_of_base(file: Path, notes: Mapping[str, str]) -> pl.DataFrame:
    """The pool that was extracted for the base model.

    Args:
        notes: those that the fine-tuned model's pool will have: of the same code, settings and
            dataset, or the base's is not what an extraction would give.

    Raises:
        UserError: it is missing, damaged, or was extracted otherwise.
    """
    pool, found = read_parquet(file, kind="dialogues"), read_metadata(file)
    if digest(pool) != found.get("digest"):
        raise UserError(f"{file} is damaged (its digest is another): delete it and run again")
    datasets = [json.loads(one.get("inputs", "{}")).get("dataset") for one in (found, notes)]
    differ = [name for name in ALIKE if found.get(name) != notes.get(name)]
    if differ or datasets[0] != datasets[1]:
        what = ", ".join(differ) or "dataset"
        raise UserError(f"{file} was extracted otherwise ({what}): delete it and run again")
    return pool


def check_same_tokenizer(base: Path, model: Path) -> None:
    """Refuse to take the dialogues of a base that has other files than a model, weights aside.

    Args:
        base, model: folders of copies without weights.

    Raises:
        UserError: a file differs, or only one of them has it.
    """
    one, other = file_digests(base), file_digests(model)
    other.pop(LOSS_CURVE, None)
    for name in sorted({*one, *other}):
        if one.get(name) != other.get(name):
            raise UserError(
                f"{model / name} is not that of the base model in {base}, so its dialogues may be "
                "others: delete the fine-tuned model's folder and run again"
            )
