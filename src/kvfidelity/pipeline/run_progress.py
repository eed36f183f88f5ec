"""A line per finished run: its name, runs done of runs to do, time left."""

from __future__ import annotations

from collections.abc import Mapping

from kvfidelity.pipeline.plan_message import duration

#: A pace is measured from so many seconds or this share of the work on. Runs that a worker computes
#: together end together: the first one takes the time of all of them.
MEASURED_S, MEASURED_SHARE = 300.0, 0.25


class RunProgress:
    """Counts runs.

    The time left is what the remaining runs should take, by the estimate before the start, times
    what the finished ones took against theirs, once these are enough to tell. Runs differ: a
    baseline feeds a whole dialogue.

    Args:
        expected: seconds of each run to do, by name.
    """

    def __init__(self, expected: Mapping[str, float]) -> None:
        self._expected = dict(expected)
        self._left = set(expected)
        self._started: float | None = None

    def starts(self, now: float) -> None:
        """A run starts; times in seconds of any one clock."""
        if self._started is None:
            self._started = now

    def finishes(self, run: str, now: float) -> str:
        """The line of a run that has finished."""
        self.starts(now)
        self._left.discard(run)
        total = len(self._expected)
        done = total - len(self._left)
        return f"[{done:>{len(str(total))}} of {total} runs] {run}{self._time_left(now)}"

    def _time_left(self, now: float) -> str:
        if not self._left or self._started is None:
            return ""
        left = sum(self._expected[run] for run in self._left)
        done = sum(self._expected.values()) - left
        elapsed = now - self._started
        enough = elapsed >= MEASURED_S or done >= MEASURED_SHARE * (left + done)
        pace = elapsed / done if enough and done > 0 and elapsed > 0 else 1.0
        return f", about {duration(left * pace)} left"
