"""Training dialogues as token ids, and the file that they are kept in."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from kvfidelity.atomic_files import write_text
from kvfidelity.bounded_json import parse_json
from kvfidelity.errors import UserError

#: What of an `adapter` entry says which dialogues a training sees; config/README.md describes the
#: keys. Trainings that agree in these and in the base's files have one file of dialogues.
CHOSEN_BY = ("data_source", "select", "dialogues")
#: Keys of the file: a digest of all else in it, what the dialogues were extracted from and by, and
#: the dialogues.
DIGEST, FACTS, EXAMPLES = "sha256", "facts", "examples"


@dataclass(frozen=True)
class Example:
    """One dialogue.

    ids: all tokens. boundaries: token indices at which a turn starts, without 0. replies: half-open
    spans of the replies' tokens, with the tokens that end a turn.
    """

    ids: tuple[int, ...]
    boundaries: tuple[int, ...]
    replies: tuple[tuple[int, int], ...]


def chosen_by(adapter: Mapping[str, Any]) -> dict[str, Any]:
    """What of a resolved `adapter` entry says which dialogues are trained on."""
    return {key: adapter[key] for key in CHOSEN_BY}


def write_examples(file: Path, examples: Sequence[Example], facts: Mapping[str, Any]) -> None:
    """Write training dialogues as one file of JSON, whole or not at all.

    Args:
        facts: `base`, digests of the base model's files; `chosen_by`, see the function; `manifest`
            of the extraction, with the provenance of the data.
    """
    content = {FACTS: dict(facts), EXAMPLES: [asdict(example) for example in examples]}
    write_text(file, json.dumps({DIGEST: _digest(content), **content}) + "\n")


def read_examples(
    file: Path, base: Mapping[str, str], adapter: Mapping[str, Any]
) -> tuple[list[Example], dict[str, Any]]:
    """The training dialogues of a file, in rank order, and its facts.

    Args:
        base: digests of the base model's files. adapter: the resolved entry of the training.

    Raises:
        UserError: the file is missing or damaged, or its dialogues are those of another base or
            were chosen otherwise.
    """
    again = "remove it and start again: the workflow extracts its dialogues anew"
    try:
        content = parse_json(file.read_bytes())
        digest = content.pop(DIGEST)
        whole = digest == _digest(content)
        facts, rows = content[FACTS], content[EXAMPLES]
    except FileNotFoundError:
        raise UserError(f"there are no training dialogues {file}") from None
    except (ValueError, TypeError, KeyError, AttributeError):
        whole = False
    if not whole:
        raise UserError(f"the training dialogues {file} are damaged: {again}")
    for name, found, expected in (
        ("of another base model", facts.get("base"), dict(base)),
        ("chosen otherwise", facts.get("chosen_by"), _plain(chosen_by(adapter))),
    ):
        if found != expected:
            raise UserError(f"the training dialogues {file} are {name}: {again}")
    return [_example(row) for row in rows], facts


def examples_digest(examples: Sequence[Example]) -> str:
    """SHA-256 in hex of all tokens and spans."""
    return _digest([asdict(example) for example in examples])


def _example(row: Mapping[str, Any]) -> Example:
    return Example(
        ids=tuple(row["ids"]),
        boundaries=tuple(row["boundaries"]),
        replies=tuple((start, stop) for start, stop in row["replies"]),
    )


def _digest(content: Any) -> str:
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def _plain(content: Mapping[str, Any]) -> Any:
    """As it is read from JSON."""
    return json.loads(json.dumps(content))
