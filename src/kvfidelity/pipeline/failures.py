"""What failed, each fault once, and what to type to go on."""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

#: Logs that the last line names.
MOST_LOGS = 3
#: Characters of a fault that are shown.
LONGEST = 600
NO_LOG = "it left no message"
_NUMBER = re.compile(r"\d+")


@dataclass
class Fault:
    """A fault, and the logs of the jobs that met it."""

    text: str
    jobs: int = 0
    logs: list[str] = field(default_factory=list)


class Failures:
    """Collects the jobs that failed."""

    def __init__(self) -> None:
        self._faults: dict[str, Fault] = {}

    def __bool__(self) -> bool:
        return bool(self._faults)

    def add(self, rule: str, name: str, logs: Sequence[str]) -> str | None:
        """A job failed.

        Args:
            name: its wildcards joined by slashes.
            logs: its log files.

        Returns:
            What to say about it; None if a job before it had the same fault.
        """
        text = fault_in(logs)
        # Two jobs' messages may differ in the job's own name, and in numbers.
        for part in (name, *name.split("/")):
            if len(part) > 2:
                text = text.replace(part, f"<{part}>")
        key = _NUMBER.sub("0", re.sub("<[^<>]*>+", "<>", text))
        first = key not in self._faults
        fault = self._faults.setdefault(key, Fault(fault_in(logs)))
        fault.jobs += 1
        fault.logs += logs
        if not first:
            return None
        where = f" (log: {', '.join(logs)})" if logs else ""
        return f"failed: {rule}{' ' + name if name else ''}: {fault.text}{where}"

    def summary(self) -> list[str]:
        """Faults that several jobs met."""
        return [
            f"{fault.jobs} jobs failed alike: {fault.text}"
            for fault in self._faults.values()
            if fault.jobs > 1
        ]

    def logs(self) -> list[str]:
        """The first log of each fault, then the others."""
        firsts = [fault.logs[0] for fault in self._faults.values() if fault.logs]
        return firsts + [log for fault in self._faults.values() for log in fault.logs[1:]]


def fault_in(logs: Sequence[str]) -> str:
    """The line that says what went wrong: the last `error: ...`, or else the last of all."""
    for log in logs:
        try:
            text = Path(log).read_text(encoding="utf-8", errors="replace")
        except OSError:
            continue
        lines = [line.strip() for line in text.splitlines() if line.strip()]
        errors = [line for line in lines if line.startswith("error:")]
        if lines:
            return (errors or lines)[-1][:LONGEST]
    return NO_LOG


def last_line(command: Sequence[str] | str, logs: Sequence[str], whole: Sequence[str]) -> str:
    """How to go on.

    Args:
        command: what was typed.
        logs: of the jobs that failed.
        whole: logs of the workflow.
    """
    typed = command if isinstance(command, str) else shlex.join(command)
    more = f" and {len(logs) - MOST_LOGS} more" if len(logs) > MOST_LOGS else ""
    read = f"{', '.join(logs[:MOST_LOGS])}{more}" if logs else ", ".join(whole)
    return f"to go on, type: {typed}" + (f"   (logs to read: {read})" if read else "")
