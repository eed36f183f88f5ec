"""Records of any shape: none crashes the reader, each is kept or counted under a reason."""

from __future__ import annotations

import json
import os
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kvfidelity.dialogues.cleaning import questions_of, turns_of
from kvfidelity.dialogues.formats import SourceCounts, read_conversations
from kvfidelity.dialogues.formats.files import joined, segments
from kvfidelity.dialogues.formats.registry import known_formats
from kvfidelity.dialogues.selection import Candidate, Selection, Selector
from kvfidelity.errors import UserError

# At least 1,000 records of each of six forms.
RUNS, RECORDS = 100, 50
TEXT = st.one_of(
    st.text(max_size=8),
    st.sampled_from(["", " ", "\x00\x1b", "\ud83d", "&lt;", "<|im_end|>", "Hi", "a", "b", "human"]),
)
JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), TEXT),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=6,
)
ROLE = st.sampled_from(
    ["human", "gpt", "user", "assistant", "system", "USER", "SYSTEM", 0, 1, None]
)


def sometimes(usual: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    """What belongs there, and now and then anything else."""
    return st.one_of(usual, usual, usual, JSON)


def objects(**keys: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    """Objects with these keys, any of which may be missing or of a wrong type."""
    whole = {key: sometimes(value) for key, value in keys.items()}
    return st.one_of(st.fixed_dictionaries(whole), st.fixed_dictionaries({}, optional=whole), JSON)


def lists(item: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.lists(item, max_size=4)


IDS = st.sampled_from(["a_0", "a_1", "a_2", "b_0", "b", 7, "_", "a_99999999999", "\ud800_1", "é_²"])
GPT = lists(objects(**{"from": ROLE, "value": TEXT, "dia_id": TEXT, "speaker": TEXT}))
CHAT = lists(objects(role=ROLE, content=TEXT, has_answer=st.booleans()))
QA = lists(objects(question=TEXT, answer=TEXT, evidence=lists(TEXT), category=st.integers(0, 6)))
SPOKEN = lists(objects(speaker=ROLE, dia_id=st.sampled_from(["D1:1", "D1:2"]), text=TEXT))
RECORDS_OF = {
    "sharegpt": objects(id=IDS, conversations=GPT),
    "openai": objects(id=IDS, messages=CHAT),
    "plain": objects(id=IDS, turns=lists(TEXT)),
    "locomo": objects(
        sample_id=IDS,
        conversation=objects(session_1=SPOKEN, session_2=SPOKEN, session_1_date_time=TEXT),
        qa=QA,
    ),
    "longmemeval": objects(
        question_id=IDS,
        question=TEXT,
        answer=TEXT,
        haystack_dates=lists(TEXT),
        haystack_sessions=lists(CHAT),
    ),
    "multiwoz": objects(
        dialogue_id=IDS,
        log=lists(objects(text=TEXT)),
        turns=st.one_of(
            lists(objects(speaker=ROLE, utterance=TEXT)),
            objects(speaker=lists(ROLE), utterance=lists(TEXT)),
        ),
    ),
}


def test_no_format_escapes() -> None:
    assert set(RECORDS_OF) == set(known_formats())


@pytest.mark.parametrize("format_", RECORDS_OF)
def test_any_record_is_kept_or_counted(format_: str) -> None:
    seen = 0

    @settings(
        max_examples=RUNS,
        deadline=None,
        suppress_health_check=list(HealthCheck),
        database=None,
        derandomize=True,
    )
    @given(st.lists(RECORDS_OF[format_], min_size=10, max_size=RECORDS))
    def holds(records: list[Any]) -> None:
        nonlocal seen
        counts = SourceCounts()
        selector = Selector(Selection(), counts.dropped)
        made = list(segments(records, known_formats()[format_], counts))
        assert len(made) + counts.dropped["malformed_record"] == len(records) == counts.records
        whole = list(joined(made, counts))
        assert len(whole) + counts.notes["segments_joined"] == len(made)
        offered = 0
        for raw in whole:
            turns, reason = turns_of(raw, counts.notes)
            if reason is not None:
                counts.dropped[reason] += 1
                continue
            for text in (part for turn in turns for part in (turn.user, turn.assistant)):
                assert text == text.strip() != ""
                text.encode()
            offered += 1
            selector.add(Candidate(raw.conversation_id, turns, questions_of(raw, turns)))
        early = sum(counts.dropped[key] for key in ("empty", "no_human_turn", "no_reply"))
        assert offered + early == len(whole)
        seen += len(records)

    holds()
    assert seen >= 1000


# Texts that a reader may change by mistake.
EXACT = st.sampled_from(
    [
        "",
        "a",
        " b ",
        "e\u0308",
        "\u00e9",
        "\ufeffx",
        "l\r\nm",
        "t\tn",
        "NaN",
        "null",
        "\u2028",
        "q\ud83d",
    ]
)
TALKS = st.lists(
    st.tuples(st.sampled_from(["human", "gpt", "system", "tool", "observation"]), EXACT), max_size=5
)
FUZZED = st.lists(
    st.one_of(st.tuples(IDS, TALKS), st.tuples(IDS, TALKS), RECORDS_OF["sharegpt"]),
    min_size=1,
    max_size=10,
)
FORMS = st.sampled_from(["array", "indented", "lines", "crlf"])
DAMAGE = st.sampled_from([None, None, None, "cut", "brace", "bytes"])


def as_record(item: Any) -> Any:
    if not isinstance(item, tuple):
        return item
    name, talk = item
    return {"id": name, "conversations": [{"from": role, "value": text} for role, text in talk]}


def as_file(records: list[Any], form: str, byte_order_mark: bool, damage: str | None) -> bytes:
    lines = {"lines": "\n", "crlf": "\r\n"}
    if form in lines:
        text = lines[form].join(map(json.dumps, records))
    else:
        text = json.dumps(records, indent=1 if form == "indented" else None)
    text = "\ufeff" * byte_order_mark + text
    middle = len(text) // 2
    if damage == "cut":
        text = text[:middle]
    data = text.encode()
    return data[:middle] + {"brace": b"}", "bytes": b"\xff"}.get(str(damage), b"") + data[middle:]


def test_any_file_is_read_exactly_or_refused_by_name(tmp_path: Path) -> None:
    """KVFIDELITY_FUZZED_RECORDS=5000 tries that many records; the usual suite tries 300."""
    wanted = int(os.environ.get("KVFIDELITY_FUZZED_RECORDS", "300"))
    path, seen, refused = tmp_path / "data.json", 0, 0

    @settings(
        max_examples=max(1, wanted // 3),
        deadline=None,
        suppress_health_check=list(HealthCheck),
        database=None,
        derandomize=True,
    )
    @given(FUZZED, FORMS, st.booleans(), DAMAGE)
    def holds(items: list[Any], form: str, byte_order_mark: bool, damage: str | None) -> None:
        nonlocal seen, refused
        records = [as_record(item) for item in items]
        seen += len(records)
        if form in ("lines", "crlf"):  # a line that is no object is another kind of file
            records = [record for record in records if isinstance(record, dict)]
        path.write_bytes(as_file(records, form, byte_order_mark, damage))
        counts = SourceCounts()
        try:
            found = list(read_conversations(path, "sharegpt", counts))
        except UserError as error:
            assert str(path) in str(error) and ("correct" in str(error) or "convert" in str(error))
            refused += 1
            assert damage or not records or isinstance(records[0], dict)
            return
        if damage or not all(isinstance(item, tuple) for item in items):
            return
        assert counts.records == len(records)
        joined_to_others = counts.notes["segments_joined"]
        assert len(found) + joined_to_others == len(records)
        given_texts = [(role, text) for _, talk in items for role, text in talk]
        if not joined_to_others:
            read = [message.text for one in found for message in one.messages]
            assert read == [text for _, text in given_texts]
        else:
            assert {m.text for one in found for m in one.messages} == {t for _, t in given_texts}

    holds()
    assert seen >= wanted and refused


def test_what_random_records_rarely_are(tmp_path: Path) -> None:
    """Deep nesting, huge numbers, ten megabytes in one turn, one id for all."""
    deep: Any = "x"
    for _ in range(600):
        deep = [deep]
    huge = {"id": "h", "conversations": [{"from": "human", "value": "y" * 10_000_000}]}
    huge["conversations"].append({"from": "gpt", "value": "ok"})  # type: ignore[attr-defined]
    same = [
        {
            "id": "s",
            "conversations": [{"from": "human", "value": str(n)}, {"from": "gpt", "value": "z"}],
        }
        for n in range(5)
    ]
    odd = [{"id": 10**400, "conversations": [{"from": deep, "value": 10**400}]}, {"id": deep}, deep]
    path = tmp_path / "data.json"
    path.write_text(json.dumps([*same, huge, *odd, None]), encoding="utf-8")
    counts = SourceCounts()
    selector = Selector(Selection(), counts.dropped)
    kinds: Counter[str] = Counter()
    for raw in read_conversations(path, "sharegpt", counts):
        turns, reason = turns_of(raw, counts.notes)
        kinds[reason or "offered"] += 1
        if reason is None:
            selector.add(Candidate(raw.conversation_id, turns))
    assert counts.records == 10
    assert kinds == {"offered": 6, "empty": 1}
    assert counts.dropped["malformed_record"] == 3
    assert counts.dropped["message_too_long"] == 1
