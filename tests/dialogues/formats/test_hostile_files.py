"""Hostile dataset files: read as they are where they are valid, else refused in one line."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from kvfidelity.dialogues.cleaning import turns_of
from kvfidelity.dialogues.formats import SourceCounts, read_conversations
from kvfidelity.errors import UserError
from tests.dialogues.formats.parquet_footer import nested_schema

ROOT = Path(__file__).parents[3]
TALK = b'"conversations":[{"from":"human","value":"q"},{"from":"gpt","value":"a"}]'
GOOD = b'{"id":"good",' + TALK + b"}"
MANY = 100_000


def parquet(**columns: Any) -> Callable[[Path], None]:
    def write(file: Path) -> None:
        pq.write_table(pa.table(columns), file, compression="zstd", store_schema=False)

    return write


def table(file: Path) -> None:
    records = [json.loads(GOOD) for _ in range(50)]
    pq.write_table(pa.Table.from_pylist(records), file)


def same_names(file: Path) -> None:
    pq.write_table(pa.table([["a"], ["b"]], names=["id", "id"]), file)


def damaged(change: Callable[[bytes], bytes]) -> Callable[[Path], None]:
    def write(file: Path) -> None:
        table(file)
        file.write_bytes(change(file.read_bytes()))

    return write


def repeated(text: str, times: int) -> pa.DictionaryArray:
    """A text that is in the file once."""
    return pa.DictionaryArray.from_arrays(pa.array([0] * times, pa.int32()), pa.array([text]))


def in_one_row(values: pa.Array) -> pa.ListArray:
    return pa.ListArray.from_arrays(pa.array([0, len(values)], pa.int32()), values)


def not_text(file: Path) -> None:
    raw = pa.array([b"\xff\xfe", b"a"], pa.binary())
    text = pa.Array.from_buffers(pa.string(), 2, raw.buffers())
    pq.write_table(pa.table({"id": text}), file)


#: What is in the file, and what the one line says.
REFUSED: dict[str, tuple[bytes | Callable[[Path], None], str]] = {
    "nested arrays": (b"[" * 200_000, "nested too deeply"),
    "nested objects": (b'[{"id":"a","x":' + b'{"a":' * 40_000, "nested too deeply"),
    "nested arrays of objects": (b'[{"a":' * 33_000, "nested too deeply"),
    "nested lines": (GOOD + b"\n" + b'{"x":1,"a":' + b"[" * 200_000, "nested too deeply"),
    "nested keyed": (b'{"a":' * 40_000 + b"1" + b"}" * 40_000, "nested too deeply"),
    "a long line": (b'{"id":"' + b"x" * (40 << 20) + b'"}\n', "longer than 32 million"),
    "many values": (b'[{"id":[' + b"[]," * 2_000_000 + b"1]}]", "more than 1,000,000 values"),
    "many keys": (
        b"[{" + b",".join(b'"%d":0' % n for n in range(900_000)) + b"}]",
        "more than 1,000,000 values",
    ),
    "a key twice": (b'[{"id":"a","id":"b"}]', "the key 'id' twice"),
    "NUL bytes": (b"\0" * 1000, "begins with neither"),
    "a NUL in a text": (b'[{"id":"a\0b"}]', "Invalid control character"),
    "UTF-16": (GOOD.decode().encode("utf-16"), "not UTF-8 at byte 0"),
    "UTF-32 without a mark": (GOOD.decode().encode("utf-32-le"), "a key in double quotes"),
    "Latin-1": (b'[{"id":"caf\xe9"}]', "not UTF-8 at byte 11"),
    "a lone digit string": (b"9" * 4301, "begins with neither"),
    "gzip": (b"\x1f\x8b\x08\0\0\0\0\0", "compressed with gzip; unpack it"),
    "zip": (b"PK\x03\x04\x14\0\0\0", "a zip archive; unpack it"),
    "YAML": (b"a: &a [x]\nb: *a\n", "begins with neither"),
    "HTML": (b"<!DOCTYPE html>", "begins with neither"),
    "a chain of segments": (
        b"[" + b",".join(b'{"id":"a_0","conversations":[]}' for _ in range(MANY + 1)) + b"]",
        "conversation 'a' have more than 100,000",
    ),
    "Parquet, truncated": (damaged(lambda content: content[:-9]), "not readable as Parquet"),
    "Parquet, its head": (b"PAR1", "not readable as Parquet"),
    "Parquet, damaged": (
        damaged(lambda content: content[:30] + bytes(200) + content[230:]),
        "not readable as Parquet",
    ),
    "Parquet, a large footer stated": (
        damaged(lambda content: content[:-8] + b"\xff\xff\xff\x7fPAR1"),
        "not readable as Parquet",
    ),
    "Parquet, nested": (lambda f: f.write_bytes(nested_schema(MANY)), "too deeply nested"),
    "Parquet, a column twice": (same_names, "two of its columns have the same name"),
    "Parquet, no UTF-8": (not_text, "not readable as Parquet"),
    "Parquet, more rows than bytes": (parquet(id=pa.nulls(3_000_000, pa.string())), "more than"),
    "Parquet, one text many times": (
        parquet(id=repeated("x" * (1 << 20), 10_000)),
        "takes more memory than twice its size and 1 GiB",
    ),
    "Parquet, one text many times in a row": (
        parquet(turns=in_one_row(repeated("x" * (1 << 20), 10_000))),
        "takes more memory than twice its size and 1 GiB",
    ),
}

#: What is in the file, conversations that are read, and records that are counted as malformed.
READ: dict[str, tuple[bytes | Callable[[Path], None], int, int]] = {
    "byte-order mark": (b"\xef\xbb\xbf[" + GOOD + b"]", 1, 0),
    "a long number": (b'[{"id":' + b"9" * 4301 + b"," + TALK + b"}," + GOOD + b"]", 2, 0),
    "a longer number": (b'[{"id":-' + b"9" * 400_000 + b"," + TALK + b"}]", 1, 0),
    "huge exponents": (b'[{"id":1e999999999,"x":-1e-999999999,' + TALK + b"}]", 1, 0),
    "no numbers": (b'[{"id":NaN,"x":[Infinity,-Infinity],' + TALK + b"}]", 1, 0),
    "lone surrogates": (
        b'[{"id":"\\ud800","conversations":[{"from":"human","value":"\\udfff q"},'
        b'{"from":"gpt","value":"a\\ud83d"}]}]',
        1,
        0,
    ),
    "escaped NULs": (GOOD.replace(b'"q"', b'"q\\u0000"'), 1, 0),
    "other line ends": (GOOD + b"\r\n\r\n" + GOOD + b"\r", 2, 0),
    "nothing but null": (b"[" + b"null," * 1000 + b"{}]", 0, 1001),
    "other types": (b'[{"id":{},"conversations":{"a":1}},{"conversations":"x"},7]', 0, 3),
    "YAML anchors as text": (b'[{"id":"&a *a !!python/object:os.system",' + TALK + b"}]", 1, 0),
    "Parquet": (table, 50, 0),
    "Parquet, a column of numbers": (parquet(id=["a", "b"], conversations=[1, 2]), 0, 2),
    "Parquet, another list": (parquet(conversations=[[1], None, []]), 2, 1),
}


def write(file: Path, content: bytes | Callable[[Path], None]) -> Path:
    if isinstance(content, bytes):
        file.write_bytes(content)
    else:
        content(file)
    return file


@pytest.mark.parametrize("name", REFUSED)
def test_a_file_that_cannot_be_read_is_one_line(tmp_path: Path, name: str) -> None:
    content, message = REFUSED[name]
    file = write(tmp_path / "data.json", content)
    with pytest.raises(UserError, match=message) as caught:
        list(read_conversations(file, "sharegpt", SourceCounts()))
    text = str(caught.value)
    assert "\n" not in text and len(text) < 500
    assert text.startswith(f"dataset file {file}") and ("; " in text or ": " in text)
    assert any(remedy in text for remedy in ("correct", "convert", "unpack", "fetch it again"))


@pytest.mark.parametrize("name", READ)
def test_a_file_that_is_valid_is_read(tmp_path: Path, name: str) -> None:
    content, conversations, malformed = READ[name]
    file = write(tmp_path / "data.json", content)
    counts = SourceCounts()
    found = list(read_conversations(file, "sharegpt", counts))
    assert (len(found), counts.dropped["malformed_record"]) == (conversations, malformed)
    for one in found:
        turns, reason = turns_of(one, counts.notes)
        assert reason == (None if one.messages else "empty")
        for turn in turns:
            assert (turn.user, turn.assistant) == ("q", "a")


MEASURED = """
import resource, sys
from pathlib import Path
import pyarrow.parquet
from kvfidelity.dialogues.formats import SourceCounts, read_conversations
from kvfidelity.errors import UserError
def peak(who):
    return resource.getrusage(who).ru_maxrss << 10
for name in sys.argv[1:]:
    before, file = peak(resource.RUSAGE_SELF), Path(name)
    try:
        for _ in read_conversations(file, "sharegpt", SourceCounts()):
            pass
    except UserError:
        pass
    print(peak(resource.RUSAGE_SELF) - before, peak(resource.RUSAGE_CHILDREN))
"""
#: Bytes that reading takes above twice the file: a long record of many values; and in the process
#: that reads Parquet, its bound and what it has without a file.
CONSTANT, PARQUET_CONSTANT = 512 << 20, 1400 << 20


def test_memory_stays_within_twice_the_file_and_a_constant(tmp_path: Path) -> None:
    hard = ["nested arrays", "nested keyed", "a long line", "many values", "many keys"]
    hard += ["Parquet, one text many times", "Parquet, one text many times in a row"]
    files = [write(tmp_path / str(n), REFUSED[name][0]) for n, name in enumerate(hard)]
    # Under both bounds, and read: a text of four bytes a character, and nearly all values.
    smile = "\U0001f600".encode() * (6 << 20)
    last = [
        b'[{"id":"a","conversations":[{"from":"human","value":"' + smile + b'"}]}]',
        b'[{"id":"a","conversations":[' + b'{"a":1},' * 330_000 + b"1]}]",
    ]
    files += [write(tmp_path / f"last{n}", content) for n, content in enumerate(last)]
    done = subprocess.run(
        [sys.executable, "-c", MEASURED, *map(str, files)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    for file, line in zip(files, done.stdout.splitlines(), strict=True):
        own, children = map(int, line.split())
        assert own <= 2 * file.stat().st_size + CONSTANT, file.name
        assert children <= 2 * file.stat().st_size + PARQUET_CONSTANT, file.name


def messages(*texts: tuple[str, str]) -> list[dict[str, str]]:
    return [{"from": role, "value": text} for role, text in texts]


@pytest.mark.parametrize(
    "conversation",
    [
        messages(*[("gpt", "a")] * MANY, ("human", "q"), ("gpt", "a")),
        messages(*[("human", "q" * 100)] * MANY, ("gpt", "a")),
        messages(("human", "&lt;" * 50_000), ("gpt", "a &gt;" + "&lt;" * 40_000)),
        messages(("human", '<div class="prose">' * 10_000), ("gpt", "</div>" * 10_000)),
        messages(("human", '<div class="' + " prose" * 30_000), ("gpt", "a")),
        messages(("human", "".join("`" * n + " " for n in range(600))), ("gpt", "a")),
        messages(("human", "&lt;" * 5_000_000), ("gpt", "a")),
    ],
    ids=["replies first", "one speaker", "escapes", "boxes", "classes", "backticks", "long"],
)
def test_no_text_takes_time_that_grows_with_its_square(conversation: list[dict[str, str]]) -> None:
    """Each would take from minutes to days."""
    from kvfidelity.dialogues.formats.registry import get_format

    raw = get_format("sharegpt").read({"id": "a", "conversations": conversation}, SourceCounts())
    turns, reason = turns_of(raw, SourceCounts().notes)
    assert reason is None and len(turns) == 1


def test_segments_are_joined_in_time_that_grows_with_their_number(tmp_path: Path) -> None:
    records = [{"id": f"a_{n}", "conversations": messages(("human", "q"))} for n in range(40_000)]
    file = tmp_path / "data.json"
    file.write_text(json.dumps(records))
    [found] = read_conversations(file, "sharegpt", SourceCounts())
    assert len(found.messages) == 40_000


def test_more_questions_than_a_conversation_has_are_refused(tmp_path: Path) -> None:
    talk = {"speaker": "A", "dia_id": "D1:1", "text": "q"}
    asked = {"question": "q?", "answer": "a", "evidence": ["D1:1"], "category": 1}
    record = {"sample_id": "a", "conversation": {"session_1": [talk]}, "qa": [asked] * 3000}
    file = tmp_path / "data.json"
    file.write_text(json.dumps([record]))
    counts = SourceCounts()
    assert list(read_conversations(file, "locomo", counts)) == []
    assert counts.dropped["malformed_record"] == 1
