"""How a workflow was started: version, commit, command and configuration, for the page.

It is a file beside the results and no rule's output, so a setting that changes no result makes
nothing again. The page shows it as it was when the page was written.
"""

from __future__ import annotations

import json
import shlex
import subprocess
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from kvfidelity.atomic_files import write_text

FILE = "invocation.json"


def write_invocation(
    results: Path, settings: Mapping[str, Any], command: Sequence[str], workflow: Path
) -> None:
    """Write what `read_invocation` returns.

    Args:
        settings: the checked configuration, defaults filled in.
        command: the arguments of the process, its program first.
        workflow: the folder of the Snakefile.
    """
    content = {
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "version": package_version(),
        "commit": commit_of(workflow),
        "command": shlex.join([Path(command[0]).name, *command[1:]]),
        "configuration": settings,
    }
    write_text(results / FILE, json.dumps(content, indent=1, default=str))


def read_invocation(results: Path) -> dict[str, Any]:
    """`started` (ISO 8601, UTC), `version`, `commit`, `command`, `configuration`; an empty dict
    where no workflow was started, or by a version that left no file."""
    try:
        content = json.loads((results / FILE).read_text("utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def package_version() -> str:
    """The library's version, or "not installed" of a checkout alone."""
    try:
        return version("kvfidelity")
    except PackageNotFoundError:
        return "not installed"


def commit_of(folder: Path) -> str | None:
    """The checkout's commit, 12 hex digits, with "changed" if files differ from it; None outside a
    git checkout."""
    found = _git(folder, "rev-parse", "--short=12", "HEAD")
    if not found:
        return None
    changed = _git(folder, "status", "--porcelain", "--untracked-files=no")
    return f"{found}, with changed files" if changed else found


def _git(folder: Path, *arguments: str) -> str:
    command = ["git", "-C", str(folder), *arguments]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""
