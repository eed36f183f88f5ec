"""Reads what the Batch API says of its batches. A body is foreign: each value's type is checked."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import openai

from kvfidelity.judges.json_text import parse_json

#: The batch's metadata that holds our name for it.
NAME = "kvfidelity"
#: Batches that the endpoint lists at once, and lists that are read in one look at most.
PAGE, MAX_PAGES = 100, 200


class UnreadableError(ValueError):
    """A body that came with a status of success and is not what the call gives."""


@dataclass(frozen=True)
class BatchState:
    """A batch as the endpoint describes it; None for what is missing or of another type.

    name: ours, from its metadata. file: the id of its requests. told: whether name and file say
    that a batch is another one.
    """

    id: str
    name: str | None
    file: str | None
    told: bool


def find_batch(client: openai.OpenAI, name: str, file: str | None) -> str | None:
    """The id of the batch with our name, or of our file; None if the endpoint lists no such batch.

    Endpoints list the newest first, the oldest first, or in no order, so the whole list is read.

    Raises:
        openai.OpenAIError: there is no list.
        UnreadableError: the batch is not found, and the list may hold it all the same.
    """
    seen: set[str] = set()
    unclear = 0
    after: dict[str, Any] = {}
    for _ in range(MAX_PAGES):
        page = _object(client.batches.with_raw_response.list(limit=PAGE, **after), "the list")
        entries = page.get("data")
        if not isinstance(entries, list):
            raise UnreadableError("the list of batches has no `data`")
        states = [_state(entry) for entry in entries]
        unclear += sum(state is None or not state.told for state in states)
        known = [state for state in states if state is not None]
        for state in known:
            if state.name == name or (file is not None and state.file == file):
                return state.id
        more = page.get("has_more")
        new = [state.id for state in known if state.id not in seen]
        if more is False or (more is not True and not new):
            if unclear:
                raise UnreadableError(f"{unclear} entries of the list of batches are not readable")
            return None
        if not new:
            raise UnreadableError("the list of batches repeats itself without an end")
        seen.update(new)
        after = {"after": new[-1]}
    raise UnreadableError(f"the list of batches has more than {MAX_PAGES * PAGE} entries")


def _object(response: Any, what: str) -> dict[str, Any]:
    """The JSON object in a raw response of the client."""
    try:
        found = parse_json(response.content.decode("utf-8-sig", "replace"))
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise UnreadableError(f"{what} of the Batch API is no JSON object")
    return found


def _state(entry: Any) -> BatchState | None:
    """A batch in JSON types; None if it has no id."""
    if not isinstance(entry, dict) or (found := _text(entry.get("id"))) is None:
        return None
    metadata, file = entry.get("metadata"), _text(entry.get("input_file_id"))
    name = _text(metadata.get(NAME)) if isinstance(metadata, Mapping) else None
    return BatchState(found, name, file, isinstance(metadata, Mapping) or file is not None)


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) and value else None
