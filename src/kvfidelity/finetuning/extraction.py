"""Training dialogues, from the half of a data set that no result is reported on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

import polars as pl

from kvfidelity.bounded_json import read_json
from kvfidelity.dialogues.extract import extract
from kvfidelity.dialogues.parts import DEVELOPMENT, TEST
from kvfidelity.dialogues.pool import Turn
from kvfidelity.dialogues.segments import ChatSegmenter
from kvfidelity.dialogues.template_check import check_template
from kvfidelity.dialogues.tokenizer import load_tokenizer
from kvfidelity.errors import UserError
from kvfidelity.finetuning.examples import Example, chosen_by, examples_digest, write_examples
from kvfidelity.models.checksums import PROVENANCE
from kvfidelity.models.end_tokens import end_token_ids
from kvfidelity.models.geometry import Geometry


def extract_training_dialogues(
    spec: Mapping[str, Any], base: Path, data: Path, file: Path
) -> dict[str, Any]:
    """Write the dialogues that models are trained on; `examples.read_examples` reads them.

    Args:
        spec: `data_source`, `select` and `dialogues` of the models' resolved `adapter` entries,
            and `format_files` if the data need them.
        base, data: folders of the fetched base model and data set.

    Returns:
        What the file says of its dialogues: the facts of `examples.write_examples`, and
        `dialogues`, their number, tokens and digest.

    Raises:
        UserError: the base or the data cannot be used, the data have too few training dialogues,
            or a dialogue is longer than the trained window.
    """
    check_template(base)
    examples, manifest = training_examples(
        data,
        {key: spec[key] for key in ("select", "dialogues")}
        | {"format": spec["data_source"]["format"]}
        | {"format_files": spec.get("format_files", ())},
        ChatSegmenter(load_tokenizer(base), end_token_ids(base)),
    )
    check_examples(examples, manifest["dropped"], spec["dialogues"], Geometry.of(base).window)
    facts = {
        "base": read_json(base / PROVENANCE)["files"],
        "chosen_by": chosen_by(spec),
        "manifest": manifest,
    }
    write_examples(file, examples, facts)
    counted = {
        "number": len(examples),
        "tokens": sum(len(one.ids) for one in examples),
        "sha256": examples_digest(examples),
    }
    return facts | {"dialogues": counted}


def training_examples(
    data: Path, entry: Mapping[str, Any], segmenter: ChatSegmenter
) -> tuple[list[Example], dict[str, Any]]:
    """The training dialogues of a fetched data set, in rank order.

    Args:
        data: its folder.
        entry: `format` with `format_files` if it needs them, `select` and `dialogues`, their
            number; whatever `select` says of a split, dialogues are of the development half, and
            share not even a first message with one of the test half.

    Returns:
        The examples, and the manifest of the extraction.

    Raises:
        UserError: unusable data, or no dialogue left.
    """
    select = {**entry["select"], "split": DEVELOPMENT, "pool": entry["dialogues"]}
    chosen = {**entry, "select": select, "apart_from": TEST}
    pool, manifest = extract(data, chosen, segmenter)
    return [example_of(turns, segmenter) for turns in _turns(pool)], manifest


def check_examples(
    examples: Sequence[Example], dropped: Mapping[str, int], asked: int, window: int
) -> None:
    """Refuse fewer dialogues than the recipe says, and dialogues beyond the trained window.

    Args:
        dropped: number of dialogues left out, by reason.
        asked: `dialogues` of the recipe.
        window: the base model's trained one, in tokens.

    Raises:
        UserError: either is so.
    """
    if len(examples) < asked:
        reasons = ", ".join(f"{reason}: {count}" for reason, count in dropped.items())
        raise UserError(
            f"adapter.dialogues is {asked}, but only {len(examples)} dialogues of the development "
            f"half pass adapter.select ({reasons}): lower `dialogues` to that, or relax `select`"
        )
    longest = max(len(example.ids) for example in examples)
    if longest > window:
        raise UserError(
            f"a training dialogue has {longest} tokens, more than the base model's trained window "
            f"of {window}, beyond which even its full cache is no target: set "
            f"adapter.select.max_tokens to {window} at most"
        )


def example_of(turns: Sequence[Turn], segmenter: ChatSegmenter) -> Example:
    """A dialogue as token ids."""
    segments = segmenter.segments(turns)
    parts = [part for segment in segments for part in (segment.prompt_ids, segment.reply_ids)]
    ends = list(accumulate(map(len, parts)))
    return Example(
        ids=tuple(token for part in parts for token in part),
        boundaries=tuple(ends[1:-1:2]),
        replies=tuple(zip(ends[::2], ends[1::2], strict=True)),
    )


def _turns(pool: pl.DataFrame) -> list[list[Turn]]:
    return [[Turn(**turn) for turn in turns] for turns in pool["turns"].to_list()]
