"""LongMemEval: one question about many earlier chat sessions (arXiv 2410.10813).

Published: {"question_id", "question_type", "question", "answer", "question_date",
"haystack_dates": [...], "haystack_sessions": [[{"role", "content", "has_answer"?}, ...], ...]}.
The sessions become one conversation; each opens with its date.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from itertools import zip_longest
from typing import Any

from kvfidelity.dialogues.formats.messages import messages_of
from kvfidelity.dialogues.formats.raw import (
    Format,
    Message,
    RawConversation,
    RawQuestion,
    SourceCounts,
    answer_text,
    conversation_id,
)


def _read(record: Any, counts: SourceCounts) -> RawConversation:
    sessions, dates = record["haystack_sessions"], record.get("haystack_dates") or []
    if not isinstance(sessions, list) or not isinstance(dates, list):
        raise TypeError("sessions and dates must be lists")
    messages: list[Message] = []
    evidence = []
    for session, date in zip_longest(sessions, dates[: len(sessions)]):
        if not isinstance(session, list):
            counts.notes["malformed_session_dropped"] += 1
            continue
        part = list(messages_of(session, "role", "content"))
        evidence += [
            item["content"]
            for item in session
            if isinstance(item, Mapping)
            and item.get("has_answer") is True
            and isinstance(item.get("content"), str)
        ]
        if part and isinstance(date, str):
            first = next((n for n, one in enumerate(part) if one.role in ("user", "assistant")), 0)
            part[first] = replace(part[first], text=f"[{date}] {part[first].text}")
        messages += part
    name = conversation_id(record.get("question_id"), messages)
    return RawConversation(name, 0, tuple(messages), _question(record, tuple(evidence), counts))


def _question(
    record: Mapping[str, Any], evidence: tuple[str, ...], counts: SourceCounts
) -> tuple[RawQuestion, ...]:
    question, answer = record.get("question"), answer_text(record.get("answer"))
    if not isinstance(question, str) or answer is None:
        counts.notes["malformed_question_dropped"] += 1
        return ()
    date = record.get("question_date")
    question = f"[{date}] {question}" if isinstance(date, str) else question
    # This ending means that the sessions do not hold the answer.
    absent = str(record.get("question_id")).endswith("_abs")
    kind = str(record.get("question_type", "unknown"))
    return (RawQuestion(question, "" if absent else answer, kind, evidence),)


FORMAT = Format(
    name="longmemeval",
    summary="`haystack_sessions` with their dates, one `question` and `answer` a record",
    read=_read,
    published="hub: xiaowu0162/longmemeval-cleaned",
)
