"""Files that are whole or absent: written under another name, flushed, then renamed."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

#: Errors of writing: no space, no quota, or a limit on the size of a file.
FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
#: A file that is being written, or that a killed process left: the group is the process's id.
TEMPORARY = re.compile(r"\..+\.tmp-(\d+)")


def temporary_path(path: Path) -> Path:
    """Where this process writes a file before it is renamed to `path`; matches `TEMPORARY`."""
    return path.with_name(f".{path.name}.tmp-{os.getpid()}")


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary path in the same folder, renamed to `path` if the block succeeds."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = temporary_path(path)
    # What is there already may be a link to somewhere else.
    temporary.unlink(missing_ok=True)
    try:
        yield temporary
        with temporary.open("rb") as written:
            os.fsync(written.fileno())
        temporary.replace(path)
    except OSError as error:
        # Where writing fails, Python does not say which file it was.
        if error.filename is None and error.errno in FULL:
            error.filename = str(path)
        raise
    finally:
        temporary.unlink(missing_ok=True)


def remove_leftovers(path: Path) -> None:
    """Remove what killed processes left of a file. Only for files that one process at a time
    writes, such as a job's outputs: another's would be gone while it is written."""
    if not path.parent.is_dir():
        return
    for file in path.parent.iterdir():
        if TEMPORARY.fullmatch(file.name) and file.name.startswith(f".{path.name}.tmp-"):
            file.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a text file, whole or not at all."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def copy_file(source: Path, path: Path) -> None:
    """Copy a small file, whole or not at all."""
    with replacing(path) as temporary:
        temporary.write_bytes(source.read_bytes())


def write_json(path: Path, content: Any) -> None:
    """Write JSON, indented, with sorted keys, whole or not at all."""
    write_text(path, json.dumps(content, indent=2, sort_keys=True, ensure_ascii=False) + "\n")


def give_usual_modes(folder: Path) -> None:
    """Give the files of a folder the permissions that a new file gets here.

    safetensors makes files for their owner alone, and folders of results may be shared.
    """
    mask = os.umask(0)  # it can only be read by setting it
    os.umask(mask)
    for path in folder.iterdir():
        if path.is_file():
            path.chmod(0o666 & ~mask)
