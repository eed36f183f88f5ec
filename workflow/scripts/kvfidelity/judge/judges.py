"""From a config entry to a judge."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from kvfidelity.judge.offline import NAME, OfflineJudge
from kvfidelity.judge.verdict import Verdict


class Judge(Protocol):
    """Gives verdicts."""

    def judge(self, rows: Sequence[Mapping[str, Any]]) -> list[Verdict]:
        """Verdicts on all turns of one run, in order."""


def judge_for(
    name: str,
    entry: Mapping[str, Any],
    rubric: Path,
    limits: Mapping[str, Any],
    store: Path,
    *,
    batch: bool = False,
    asked: bool = False,
) -> Judge:
    """A judge.

    Args:
        name, entry: of the judge in the config. limits: see `asking.Limits`.
        store: the folder of answers. batch: ask through the Batch API.
        asked: all was asked in a batch before; what is not there is not asked for.
    """
    if entry["kind"] == NAME:
        return OfflineJudge(name, rubric.stem)
    # A run without a key needs no client of an endpoint.
    from kvfidelity.judge.remote import RemoteJudge
    from kvfidelity.judge.rubric import Rubric
    from kvfidelity.judge.sending import asker_for

    asker = asker_for(name, entry, limits, store, batch=batch, asked=asked)
    return RemoteJudge(name, entry, Rubric.read(rubric), asker)
