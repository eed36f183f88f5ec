"""A Parquet file's rows, read by a process of its own whose memory is bounded.

A few kilobytes of Parquet may stand for gigabytes: pages decompress, a dictionary's text is
repeated by number, and the sizes that a file states may be wrong. What happens then in pyarrow's
native code (no memory left, a crash) ends that process alone, and the file is refused in one line.
This module is that process's program too, so it imports nothing of this project.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

#: Bytes of memory that reading takes, above twice the file's size.
MEMORY = 1 << 30
#: Bytes of text that a file may stand for, above a hundred times its size. Chats compress by 3 to
#: 20.
TEXT, EXPANSION = 1 << 30, 100
#: Bytes of text that are decoded together, by the average row, and most rows.
BATCH, MOST_ROWS = 16 << 20, 1000
#: Rows that a file may have however small it is; a larger one has no more rows than bytes.
FEW_ROWS = 100_000
#: Exit status for a file that is refused.
REFUSED = 2


class ParquetError(Exception):
    """Why a file cannot be read."""


def parquet_rows(path: Path) -> Iterator[bytes]:
    """Each row as a line of JSON; what JSON has no form for, such as bytes or a date, is null.

    Raises:
        ParquetError: it is no Parquet, damaged, or takes too much memory.
    """
    # One pool and one arena: each reserves address space, which is what is bounded.
    environment = os.environ | {"ARROW_DEFAULT_MEMORY_POOL": "system", "MALLOC_ARENA_MAX": "1"}
    # -P: the modules next to this one are not on the path.
    command = [sys.executable, "-P", __file__, str(path)]
    with (
        tempfile.TemporaryFile() as messages,
        subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=messages,
            env=environment,
        ) as process,
    ):
        assert process.stdout
        try:
            yield from process.stdout
            status = process.wait()
        finally:
            process.kill()
        if status:
            messages.seek(0)
            raise ParquetError(_reason(status, messages.read(4096)))


def _reason(status: int, messages: bytes) -> str:
    if status < 0:
        return f"reading it ended with {signal.Signals(-status).name}"
    lines = messages.decode("utf-8", "replace").split("\n")
    # A refusal is the first line; of an error of Python, the last says what it was.
    found = lines if status == REFUSED else [line for line in reversed(lines) if line.strip()]
    return found[0].strip() if found and found[0].strip() else f"reading it ended with {status}"


def _print_rows(path: str) -> None:
    import pyarrow
    import pyarrow.parquet as pq

    pyarrow.set_cpu_count(1)
    size = Path(path).stat().st_size
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    limit = used + MEMORY + 2 * size
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    if hard != resource.RLIM_INFINITY:  # no more than what the caller's environment allows
        limit = min(limit, hard)
    resource.setrlimit(resource.RLIMIT_AS, (limit, hard))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    left = TEXT + EXPANSION * size
    with pq.ParquetFile(path, memory_map=False, pre_buffer=False) as file:
        names = file.schema_arrow.names
        if len(set(names)) < len(names):
            raise ParquetError("two of its columns have the same name")
        if file.metadata.num_rows > max(size, FEW_ROWS):
            raise ParquetError(f"it has {file.metadata.num_rows} rows, more than bytes")
        for batch in file.iter_batches(_batch_rows(file.metadata), use_threads=False):
            for row in batch.to_pylist():
                line = json.dumps(row, ensure_ascii=False, default=_no_json).encode() + b"\n"
                left -= len(line)
                if left < 0:
                    raise ParquetError(
                        f"its rows are more than {EXPANSION} times as large as the file"
                    )
                sys.stdout.buffer.write(line)
    sys.stdout.buffer.flush()


def _batch_rows(metadata: Any) -> int:
    """Rows that are decoded together, by what the file states of its size."""
    stated = sum(metadata.row_group(n).total_byte_size for n in range(metadata.num_row_groups))
    rows: int = BATCH * metadata.num_rows // max(stated, 1)
    return max(1, min(MOST_ROWS, rows))


def _no_json(value: Any) -> None:
    """Bytes, dates and decimals are no text of a message."""


def _main() -> None:
    reason = ""
    try:
        _print_rows(sys.argv[1])
    except BrokenPipeError:
        os._exit(REFUSED)  # who asked is gone
    except MemoryError:
        reason = (
            f"it takes more memory than twice its size and {MEMORY >> 30} GiB, because it is "
            "damaged or its rows are very large"
        )
    except Exception as error:  # noqa: BLE001 - pyarrow raises of many kinds
        reason = str(error).split("\n")[0] or type(error).__name__
    if reason:
        sys.stderr.write(reason + "\n")
        sys.stderr.flush()
        os._exit(REFUSED)  # without the end of the interpreter, which may need memory


if __name__ == "__main__":
    _main()
