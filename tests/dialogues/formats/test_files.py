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
    with pytest.raises(UserError, match=r"must end in \.json, \.jsonl, \.parquet"):
        read(write(tmp_path / "data.txt", []))
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
    """What `source: hub` does, with a local file instead of the hub."""
    import datasets

    records = [{"id": "a", "messages": openai(1)}, {"id": "b", "messages": openai(2)}]
    pl.DataFrame(records).write_parquet(tmp_path / "train.parquet")
    loaded = datasets.load_dataset(
        "parquet",
        data_files=str(tmp_path / "train.parquet"),
        split="train",
        cache_dir=str(tmp_path / "cache"),
    )
    loaded.to_parquet(str(tmp_path / "data.parquet"))
    found, _ = read(tmp_path / "data.parquet", "openai")
    assert [texts(one) for one in found] == [["question 1", "answer"], ["question 2", "answer"]]
