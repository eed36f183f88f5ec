"""LoCoMo: very long conversations of two persons over months, with questions (arXiv 2402.17753).

Published: {"sample_id", "conversation": {"session_1": [{"speaker", "dia_id", "text",
"blip_caption"?}], "session_1_date_time": "..."}, "qa": [{"question", "answer", "evidence":
["D1:3"], "category", "adversarial_answer"?}]}. Also read: the same with one flat list
`conversations` of `speaker`, `dia_id`, `value`.

The first speaker is the user. Questions ask for dates, so each session opens with its date.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from kvfidelity.dialogues.formats.raw import (
    Format,
    Message,
    RawConversation,
    RawQuestion,
    SourceCounts,
    conversation_id,
)

CATEGORIES = {
    1: "multi-hop",
    2: "temporal",
    3: "open-domain",
    4: "single-hop",
    5: "adversarial",
}
SESSION = re.compile(r"session_([0-9]{1,6})")


def _read(record: Any, counts: SourceCounts) -> RawConversation:
    text_of: dict[str, str] = {}
    spoken = []
    for speaker, message_id, text in _spoken(record, counts):
        text_of[message_id] = text
        spoken.append((speaker, text))
    # A third speaker is neither user nor assistant.
    speakers = list(dict.fromkeys(speaker for speaker, _ in spoken))
    roles = dict(zip(speakers, ("user", "assistant"), strict=False))
    messages = tuple(Message(roles.get(speaker, speaker), text) for speaker, text in spoken)
    name = conversation_id(record.get("sample_id", record.get("id")), messages)
    return RawConversation(name, 0, messages, _questions(record.get("qa"), text_of, counts))


def _spoken(record: Any, counts: SourceCounts) -> Iterator[tuple[str, str, str]]:
    """Speaker, message id ("D1:3") and text of every message, in order."""
    if "conversations" in record:
        sessions = [("", record["conversations"])]
    else:
        talk = record["conversation"]
        numbers = sorted(int(found[1]) for key in talk if (found := SESSION.fullmatch(key)))
        names = [f"session_{number}" for number in numbers]
        sessions = [(str(talk.get(f"{name}_date_time", "")), talk[name]) for name in names]
    for date, items in sessions:
        if not isinstance(items, list):
            counts.notes["malformed_session_dropped"] += 1
            continue
        head = f"[{date}] " if date else ""
        for item in items:
            text = _text(item)
            if text is None or not isinstance(item.get("speaker"), str):
                counts.notes["malformed_message_dropped"] += 1
                continue
            yield item["speaker"], str(item.get("dia_id")), head + text
            head = ""


def _text(item: Any) -> str | None:
    text = item.get("text", item.get("value")) if isinstance(item, Mapping) else None
    if not isinstance(text, str):
        return None
    caption = item.get("blip_caption")
    return f"{text} [shares a photo: {caption}]" if isinstance(caption, str) else text


def _questions(
    items: Any, text_of: dict[str, str], counts: SourceCounts
) -> tuple[RawQuestion, ...]:
    found = []
    for item in items if isinstance(items, list) else []:
        question = item.get("question") if isinstance(item, Mapping) else None
        if not isinstance(question, str):
            counts.notes["malformed_question_dropped"] += 1
            continue
        given = item.get("evidence")
        # A few entries hold several message ids in one string: "D8:6; D9:17".
        message_ids = re.findall(r"D[0-9]+:[0-9]+", " ".join(map(str, given or [])))
        answer, wrong = item.get("answer"), item.get("adversarial_answer")
        category = item.get("category")
        found.append(
            RawQuestion(
                question,
                "" if answer is None or wrong is not None else str(answer),
                CATEGORIES.get(category, "unknown") if isinstance(category, int) else "unknown",
                tuple(
                    text_of[message_id]
                    for message_id in dict.fromkeys(message_ids)
                    if message_id in text_of
                ),
                () if wrong is None else (str(wrong),),
            )
        )
    return tuple(found)


FORMAT = Format(
    name="locomo",
    summary="`conversation` with `session_<n>` lists and their dates, `qa`",
    read=_read,
    published="https://github.com/snap-research/locomo",
)
