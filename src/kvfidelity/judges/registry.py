"""From a config entry to a judge."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from kvfidelity.judges.formula import KIND, FormulaJudge
from kvfidelity.judges.verdict import Verdict


class Judge(Protocol):
    """Gives verdicts."""

    def judge(self, rows: Sequence[Mapping[str, Any]]) -> list[Verdict]:
        """Verdicts on all turns of one run, in order."""


def build_judge(
    name: str,
    entry: Mapping[str, Any],
    rubric: Path,
    limits: Mapping[str, Any],
    store: Path,
    *,
    batch: bool = False,
    from_batch: bool = False,
) -> Judge:
    """A judge.

    Args:
        name, entry: of the judge in the config. limits: see `asking.Limits`.
        store: the folder of answers. batch: ask through the Batch API.
        asked: all was asked in a batch before; what is not there is not asked for.
    """
    if entry["kind"] == KIND:
        return FormulaJudge(name, rubric.stem)
    # A run without a key needs no client of an endpoint.
    from kvfidelity.judges.dispatch import build_client
    from kvfidelity.judges.llm import LLMJudge
    from kvfidelity.judges.rubric import Rubric

    client = build_client(name, entry, limits, store, batch=batch, from_batch=from_batch)
    return LLMJudge(name, entry, Rubric.read(rubric), client)
