"""Reading files: formats, split segments, files that end or break in the middle."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from kvfidelity.dialogues.formats import RawConversation, SourceCounts, read_conversations
from kvfidelity.dialogues.formats.registry import known_formats
from kvfidelity.errors import UserError


def say(*texts: str) -> list[dict[str, str]]:
    return [
        {"from": "gpt" if offset % 2 else "human", "value": text}
        for offset, text in enumerate(texts)
    ]


def read(path: Path, format_: str = "sharegpt") -> tuple[list[RawConversation], SourceCounts]:
    counts = SourceCounts()
    return list(read_conversations(path, format_, counts)), counts


def write(path: Path, records: Any) -> Path:
    path.write_text(json.dumps(records), encoding="utf-8")
    return path


def texts(conversation: RawConversation) -> list[str]:
    return [message.text for message in conversation.messages]


def test_segments_that_overlap_by_a_message_or_touch_are_rejoined(tmp_path: Path) -> None:
    records = [
        {"id": "a_0", "conversations": say("1", "2", "3")},
        {"id": "a_2", "conversations": say("3", "4")},
        {"id": "a_4", "conversations": say("5", "6")},
        {"id": "b_0", "conversations": say("7", "8")},
    ]
    found, counts = read(write(tmp_path / "data.json", records))
    assert [one.conversation_id for one in found] == ["a", "b"]
    assert texts(found[0]) == list("123456")
    assert (counts.records, counts.notes["segments_joined"]) == (4, 2)


def test_numbered_ids_are_no_segments_without_evidence(tmp_path: Path) -> None:
    records = [
        {"id": "identity_0", "conversations": say("Who are you?", "A model.")},
        {"id": "identity_2", "conversations": say("Your name?", "None.", "Why?", "So.")},
        {"id": "identity_6", "conversations": say("Are you alive?", "No.")},
        {"id": "identity_9", "conversations": say("Who made you?", "People.")},
    ]
    found, counts = read(write(tmp_path / "data.json", records))
    assert [one.conversation_id for one in found] == [record["id"] for record in records]
    assert [len(one.messages) for one in found] == [2, 4, 2, 2]
    assert counts.notes["segments_joined"] == 0


def test_overlapping_text_joins_a_chain_without_its_beginning(tmp_path: Path) -> None:
    records = [
        {"id": "a_4", "conversations": say("5", "6", "7")},
        {"id": "a_6", "conversations": say("7", "8")},
        {"id": "a_8", "conversations": say("9", "10")},
    ]
    found, _ = read(write(tmp_path / "data.json", records))
    assert [(one.conversation_id, texts(one)) for one in found] == [
        ("a_4", ["5", "6", "7", "8"]),
        ("a_8", ["9", "10"]),
    ]


def test_an_empty_segment_does_not_break_a_chain(tmp_path: Path) -> None:
    records = [{"id": "a_0", "conversations": []}, {"id": "a_0", "conversations": say("1", "2")}]
    [found], _ = read(write(tmp_path / "data.json", records))
    assert (found.conversation_id, texts(found)) == ("a", ["1", "2"])


def test_one_record_twice_stays_two_and_an_empty_overlap_joins_nothing(tmp_path: Path) -> None:
    records = [
        {"id": "a_0", "conversations": say("1", "2")},
        {"id": "a_0", "conversations": say("1", "2")},
        {"id": "b_2", "conversations": say("3", "")},
        {"id": "b_3", "conversations": say("", "4")},
        {"id": "2024_11", "conversations": say("a date", "is no segment")},
    ]
    found, _ = read(write(tmp_path / "data.json", records))
    names = [one.conversation_id for one in found]
    assert names == ["a_0", "a_0", "b_2", "b_3", "2024_11"]


def test_a_message_that_is_left_out_does_not_break_a_chain(tmp_path: Path) -> None:
    call = {"from": "function_call", "value": "f()"}
    records = [
        {"id": "a_0", "conversations": [*say("1", "2"), call, {"from": "gpt", "value": None}]},
        {"id": "a_4", "conversations": say("5", "6")},
    ]
    [found], counts = read(write(tmp_path / "data.json", records))
    assert (found.conversation_id, texts(found)) == ("a", ["1", "2", "f()", "5", "6"])
    assert counts.notes["malformed_message_dropped"] == 1


def written(records: list[Any]) -> dict[str, str]:
    """The same records in each way to write them, by the name of the reading."""
    lines = [json.dumps(record) for record in records]
    return {
        "a JSON array": json.dumps(records, indent=1),
        "JSON Lines": "\r\n".join(lines),
        "a JSON object of records by id": json.dumps({one["id"]: one for one in records}),
    }


@pytest.mark.parametrize("suffix", [".json", ".jsonl", ".txt", ""])
@pytest.mark.parametrize("byte_order_mark", ["", "\ufeff"])
def test_content_and_not_the_name_says_how_to_read(
    tmp_path: Path, suffix: str, byte_order_mark: str
) -> None:
    odd = ["half \ud83d a pair", "a\u2028b\x85c", "Zoe\u0308", "  x\u00a0"]
    records = [{"id": name, "conversations": say(*odd), "n": float("nan")} for name in "abc"]
    path = tmp_path / f"data{suffix}"
    for reading, text in written(records).items():
        path.write_text(byte_order_mark + text, encoding="utf-8", newline="")
        found, counts = read(path)
        assert [texts(one) for one in found] == [odd] * 3
        assert [one.conversation_id for one in found] == ["a", "b", "c"]
        assert counts.read_as == reading


def test_a_broken_file_says_how_it_was_read(tmp_path: Path) -> None:
    records = [{"id": name, "conversations": say("q", "a")} for name in "abc"]
    path = tmp_path / "data.json"
    for reading, text in written(records).items():
        path.write_text(text.replace('"b", "conv', '"b" "conv').replace('"b",\n', '"b"\n'))
        with pytest.raises(UserError, match=f"it was read as {reading}"):
            read(path)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "it is empty"),
        (b'[{"id": 1, "id": 2}]', "the key 'id' twice"),
        (b'[{"id": "a"}] [', "after the end of the array"),
        (b'{"a": {"id": "a"}}}', "line 1: broken JSON"),
        (b'[{"id": "\xff"}]', "not UTF-8 at byte 9"),
        ('[{"id": "a"}]'.encode("utf-16"), "not UTF-8 at byte 0"),
        (b"\x1f\x8b\x08\x00", "compressed with gzip; unpack it"),
        (b"PK\x03\x04\x14\x00", "a zip archive; unpack it"),
        (b"\x28\xb5\x2f\xfd\x04", "compressed with zstd; unpack it"),
        (b"[" * 500_000, "nested too deeply"),
    ],
)
def test_text_that_is_no_json_is_refused_by_name(tmp_path: Path, data: bytes, message: str) -> None:
    path = tmp_path / "data.json"
    path.write_bytes(data)
    with pytest.raises(UserError, match=f"data.json.*{message}"):
        read(path)


def test_values_that_lie_across_blocks_are_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    records = [{"id": f"r{n}", "conversations": say("é\U0001f989" * n, "a")} for n in range(9)]
    path = tmp_path / "data.json"
    for size in (1, 2, 7, 64):
        monkeypatch.setattr("kvfidelity.dialogues.formats.json_records.BLOCK", size)
        for text in written(records).values():
            path.write_text(text.replace("\\ud83e\\udd89", "\U0001f989"), encoding="utf-8")
            found, _ = read(path)
            assert [texts(one)[0] for one in found] == ["é\U0001f989" * n for n in range(9)]


def test_a_gap_between_segments_is_not_papered_over(tmp_path: Path) -> None:
    records = [
        {"id": "a_0", "conversations": say("1", "2")},
        {"id": "a_5", "conversations": say("6", "7")},
    ]
    found, counts = read(write(tmp_path / "data.json", records))
    assert [texts(one) for one in found] == [["1", "2"], ["6", "7"]]
    assert counts.notes["segments_with_a_gap"] == 1


def test_a_file_cut_off_at_its_end_loses_its_last_conversation_and_says_so(tmp_path: Path) -> None:
    records = [{"id": f"{n}_0", "conversations": say("question", "answer")} for n in range(3)]
    path = tmp_path / "data.json"
    whole = json.dumps(records)
    path.write_text(whole[:-20], encoding="utf-8")
    found, counts = read(path)
    assert [one.conversation_id for one in found] == ["0"]
    assert counts.truncated_at == len(whole) - 20
    assert counts.dropped["cut_off_by_end_of_file"] == 1


def test_json_that_breaks_in_the_middle_names_the_place(tmp_path: Path) -> None:
    records = [{"id": f"{n}_0", "conversations": say("q" * 5000, "a")} for n in range(40)]
    broken = json.dumps(records).replace('"id": "29_0"', '"id": "29_0" oops')
    path = tmp_path / "data.json"
    path.write_text(broken, encoding="utf-8")
    with pytest.raises(UserError, match=r"broken JSON after 29 records, between bytes") as caught:
        read(path)
    low, high = (int(word) for word in str(caught.value).split("bytes ")[1].split()[0:3:2])
    assert low <= broken.index("oops") <= high
    assert "correct the file" in str(caught.value)


def test_a_broken_line_names_its_number(tmp_path: Path) -> None:
    path = tmp_path / "data.jsonl"
    good = json.dumps({"id": "a_0", "conversations": say("q", "a")})
    path.write_text(f"{good}\n{good[:30]}\n{good}\n", encoding="utf-8")
    with pytest.raises(UserError, match=r"line 2: broken JSON .* correct or remove that line"):
        read(path)


def test_lines_cut_off_at_the_end_are_reported(tmp_path: Path) -> None:
    path = tmp_path / "data.jsonl"
    lines = [json.dumps({"id": name, "conversations": say("q", "a")}) for name in "abc"]
    path.write_text("\n".join(lines)[:-9], encoding="utf-8")
    found, counts = read(path)
    assert [one.conversation_id for one in found] == ["a"]
    assert counts.truncated_at == path.stat().st_size


@pytest.mark.parametrize("suffix", [".json", ".jsonl", ".parquet"])
def test_every_file_kind_gives_the_same_conversations(tmp_path: Path, suffix: str) -> None:
    records = [{"id": str(n), "messages": openai(n)} for n in range(2500)]
    path = tmp_path / f"data{suffix}"
    if suffix == ".parquet":
        pl.DataFrame(records).write_parquet(path)
    elif suffix == ".jsonl":
        path.write_text("".join(json.dumps(record) + "\n" for record in records))
    else:
        write(path, records)
    found, counts = read(path, "openai")
    assert counts.records == 2500
    assert [one.conversation_id for one in found] == [str(n) for n in range(2500)]
    assert texts(found[-1]) == ["question 2499", "answer"]


def openai(number: int) -> list[dict[str, str]]:
    return [
        {"role": "user", "content": f"question {number}"},
        {"role": "assistant", "content": "answer"},
    ]


def test_openai_text_parts_are_joined_and_pictures_left_out(tmp_path: Path) -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "image_url"}, {"type": "text", "text": "b"}]
    record = {"messages": [{"role": "user", "content": parts}]}
    [found], _ = read(write(tmp_path / "data.json", [record]), "openai")
    assert texts(found) == ["a\nb"]


def test_the_list_of_messages_may_be_called_conversation(tmp_path: Path) -> None:
    record = {"conversation_id": "w", "conversation": openai(1)}
    [found], _ = read(write(tmp_path / "data.json", [record]), "openai")
    assert (found.conversation_id, texts(found)) == ("w", ["question 1", "answer"])


def test_plain_turns_alternate(tmp_path: Path) -> None:
    [found], counts = read(
        write(tmp_path / "data.json", [{"turns": ["a", "b", None, "d"]}]), "plain"
    )
    assert [(m.role, m.text) for m in found.messages] == [
        ("user", "a"),
        ("assistant", "b"),
        ("assistant", "d"),
    ]
    assert counts.notes["malformed_message_dropped"] == 1


def test_missing_files_and_unknown_formats_name_the_remedy(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not exist; correct `path`"):
        read(tmp_path / "none.json")
    (tmp_path / "data.csv").write_text("id,text\n")
    with pytest.raises(UserError, match=r"line 1: .* begins with neither an array nor an object"):
        read(tmp_path / "data.csv")
    with pytest.raises(UserError, match="did you mean 'sharegpt'"):
        read(write(tmp_path / "data.json", []), "sharegtp")
    (tmp_path / "data.parquet").write_bytes(b"PAR1 no")
    with pytest.raises(UserError, match="not readable as Parquet"):
        read(tmp_path / "data.parquet")


def test_every_format_tells_where_it_is_published_and_how_it_looks() -> None:
    forms = known_formats()
    assert set(forms) >= {"sharegpt", "openai", "plain", "locomo", "longmemeval", "multiwoz"}
    assert all(format_.summary and format_.name == name for name, format_ in forms.items())


OWN_FORMAT = """\
from kvfidelity.dialogues.formats.raw import Format, Message, RawConversation


def read(record, counts):
    lines = record["log"].split("|")
    messages = [Message(("user", "assistant")[n % 2], line) for n, line in enumerate(lines)]
    return RawConversation(record["name"], 0, tuple(messages))


FORMAT = Format(name="piped", summary="`log`, texts between bars", read=read)
"""


def test_a_file_adds_a_format(tmp_path: Path) -> None:
    own = tmp_path / "my_format.py"
    own.write_text(OWN_FORMAT)
    path = write(tmp_path / "data.json", [{"name": "a", "log": "Hi|Hello"}, {"name": "b"}])
    counts = SourceCounts()
    [found] = read_conversations(path, "piped", counts, [str(own)])
    assert texts(found) == ["Hi", "Hello"]
    assert counts.dropped == {"malformed_record": 1}
    with pytest.raises(UserError, match="'piped' is unknown"):
        list(read_conversations(path, "piped", SourceCounts()))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "does not exist"),
        ("x = 1", "defines no dialogue format"),
        (OWN_FORMAT.replace('"piped"', '"plain"'), "exists already"),
    ],
)
def test_a_format_file_that_cannot_be_used_is_named(
    tmp_path: Path, text: str | None, message: str
) -> None:
    own = tmp_path / "my_format.py"
    if text is not None:
        own.write_text(text)
    with pytest.raises(UserError, match=f"my_format.py.*{message}"):
        known_formats([str(own)])


def test_parquet_through_the_datasets_library(tmp_path: Path) -> None:
    """What `source: hub` does with a table that the hub gave."""
    import datasets

    records = [{"id": "a", "messages": openai(1)}, {"id": "b", "messages": openai(2)}]
    loaded = datasets.Dataset.from_list(records)
    with (tmp_path / "data.parquet").open("wb") as handle:
        loaded.to_parquet(handle)
    found, _ = read(tmp_path / "data.parquet", "openai")
    assert [texts(one) for one in found] == [["question 1", "answer"], ["question 2", "answer"]]
