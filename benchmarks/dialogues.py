"""Seconds and memory of reading, cleaning and choosing ShareGPT conversations, without tokens.

    python benchmarks/dialogues.py resources/datasets/sharegpt/*/data.json --times 8

It then reads a file that is `--times` as large, made by repetition with new ids. Each file is read
in a separate process, so that its peak of memory is measured alone.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from kvfidelity.dialogues.cleaning import turns_of
from kvfidelity.dialogues.formats import SourceCounts, read_conversations
from kvfidelity.dialogues.selection import Candidate, Selection, Selector


def repeat(path: Path, large: Path, times: int, first: int | None = None) -> None:
    """Write a file's whole records `times` times; `first`: only those of its first bytes."""
    with path.open("rb") as source:
        text = source.read(first)
    # Up to the last whole record, so that the repetitions join.
    text = text[1 : text.rindex(b"\n  {")].rstrip().rstrip(b",")
    with large.open("wb") as sink:
        for copy in range(times):
            sink.write(b"," if copy else b"[")
            sink.write(text.replace(b'"id": "', b'"id": "%d-' % copy))
        sink.write(b"]")


def cost(path: Path) -> dict[str, Any]:
    """Seconds, peak of memory in MiB and records of a file, read in a separate process."""
    command = [sys.executable, __file__, str(path), "--read"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def read(path: Path) -> dict[str, Any]:
    """Read a file in this process."""
    started = time.perf_counter()
    counts = SourceCounts()
    selector = Selector(Selection(min_turns=6, language="en"), counts.dropped)
    for raw in read_conversations(path, "sharegpt", counts):
        turns, reason = turns_of(raw, counts.notes)
        if reason is None:
            selector.add(Candidate(raw.conversation_id, turns))
    return {
        "seconds": time.perf_counter() - started,
        "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "records": counts.records,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("file", type=Path)
    parser.add_argument("--times", type=int, default=8)
    parser.add_argument("--read", action="store_true", help="in this process, as JSON")
    given = parser.parse_args()
    if given.read:
        print(json.dumps(read(given.file)))
        return
    with tempfile.TemporaryDirectory() as scratch:
        large = Path(scratch) / "large.json"
        repeat(given.file, large, given.times)
        for path in (given.file, large):
            found = cost(path)
            size = path.stat().st_size / 1e6
            print(
                f"{size:,.0f} MB, {found['records']:,} records: {found['seconds']:.1f} s, "
                f"peak {found['peak_mib']:,.0f} MiB",
                flush=True,
            )


if __name__ == "__main__":
    main()
