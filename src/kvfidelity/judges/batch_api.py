"""Reads what the Batch API says of its batches. A body is foreign: each value's type is checked."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from kvfidelity.judges.exchange import Exchanges
from kvfidelity.judges.json_text import parse_json

#: The batch's metadata that holds our name for it.
NAME = "kvfidelity"
#: Batches that the endpoint lists at once, and lists that are read in one look at most.
PAGE, MAX_PAGES = 100, 200
#: The states of a batch.
FINISHED = ("completed", "expired", "cancelled", "failed")
UNFINISHED = ("validating", "in_progress", "finalizing", "cancelling")
#: Further tries of a call that may be repeated.
RETRIES = 8


class UnreadableError(ValueError):
    """A body that came with a status of success and is not what the call gives."""


@dataclass(frozen=True)
class BatchState:
    """A batch as the endpoint describes it; None for what is missing or of another type.

    name: ours, from its metadata. file: the id of its requests. told: whether name and file say
    that a batch is another one. files: ids of its answers and of its errors. completed: how many
    requests were answered, 0 if that is not known. problems: why it failed.
    """

    id: str
    name: str | None
    file: str | None
    told: bool
    status: str | None
    files: tuple[str, ...]
    completed: int
    problems: str


def upload_file(api: Exchanges, name: str, content: bytes) -> str:
    """The id of a file of requests; raises as `batch_state` does."""
    response = api.call(
        lambda client: client.files.with_raw_response.create(file=(name, content), purpose="batch"),
        retries=RETRIES,
    )
    return _id(_object(response, "an upload"), "an upload")


def create_batch(api: Exchanges, path: str, name: str, file: str) -> str:
    """The id of a batch, created by one request; raises as `batch_state` does."""
    kind: Any = path
    response = api.call(
        lambda client: client.batches.with_raw_response.create(
            completion_window="24h", endpoint=kind, input_file_id=file, metadata={NAME: name}
        )
    )
    return _id(_object(response, "the creation of a batch"), "the creation of a batch")


def batch_state(api: Exchanges, found: str) -> BatchState:
    """What the endpoint says of a batch.

    Raises:
        openai.OpenAIError: it says nothing. UnreadableError: what it says is no batch.
    """
    response = api.call(
        lambda client: client.batches.with_raw_response.retrieve(found), retries=RETRIES
    )
    state = _state(_object(response, "a batch"))
    if state is None:
        raise UnreadableError("a batch of the Batch API has no id")
    if state.status not in (*FINISHED, *UNFINISHED):
        raise UnreadableError(
            f"a batch has the status {json.dumps(state.status)}, which is unknown"
        )
    return state


def file_content(api: Exchanges, file: str) -> bytes:
    """The bytes of a file, those of the first `MAX_FILE_BYTES`; raises openai.OpenAIError."""
    return api.call(lambda client: client.files.content(file), retries=RETRIES).content


def find_batch(api: Exchanges, name: str, file: str | None) -> str | None:
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
        page = _page(api, after)
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


def _page(api: Exchanges, after: dict[str, Any]) -> dict[str, Any]:
    """A page of the endpoint's list."""
    response = api.call(
        lambda client: client.batches.with_raw_response.list(limit=PAGE, **after), retries=RETRIES
    )
    return _object(response, "the list")


def _object(response: Any, what: str) -> dict[str, Any]:
    """The JSON object in a raw response of the client."""
    try:
        found = parse_json(response.content.decode("utf-8-sig", "replace"))
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise UnreadableError(f"{what} of the Batch API is no JSON object")
    return found


def _id(body: dict[str, Any], what: str) -> str:
    if (found := _text(body.get("id"))) is None:
        raise UnreadableError(f"{what} of the Batch API gives no id")
    return found


def _state(entry: Any) -> BatchState | None:
    """A batch in JSON types; None if it has no id."""
    if not isinstance(entry, dict) or (found := _text(entry.get("id"))) is None:
        return None
    metadata, file = entry.get("metadata"), _text(entry.get("input_file_id"))
    files = (_text(entry.get("output_file_id")), _text(entry.get("error_file_id")))
    counts = entry.get("request_counts")
    completed = counts.get("completed") if isinstance(counts, dict) else None
    return BatchState(
        id=found,
        name=_text(metadata.get(NAME)) if isinstance(metadata, dict) else None,
        file=file,
        told=isinstance(metadata, dict) or file is not None,
        status=_text(entry.get("status")),
        files=tuple(name for name in files if name is not None),
        completed=completed if isinstance(completed, int) else 0,
        problems=_problems(entry.get("errors")),
    )


def _problems(errors: Any) -> str:
    """The words of what is wrong with a batch."""
    data = errors.get("data") if isinstance(errors, dict) else errors
    found = data if isinstance(data, list) else [data]
    texts = [_text(item.get("message") if isinstance(item, dict) else item) for item in found]
    return "; ".join(text for text in texts if text) or "no reason given"


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) and value else None
