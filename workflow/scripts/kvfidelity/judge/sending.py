"""Which way a judge's requests are sent."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kvfidelity.errors import UserError
from kvfidelity.judge.asking import Asker, Limits, Outcome, Request
from kvfidelity.judge.batch import BatchAsker
from kvfidelity.judge.endpoint import Endpoint
from kvfidelity.judge.live import LiveAsker
from kvfidelity.judge.store import AnswerStore


@dataclass(frozen=True)
class StoredAsker:
    """Asks nobody: everything was asked before, in a batch."""

    judge: str
    store: AnswerStore

    def ask(self, requests: Sequence[Request]) -> list[Outcome]:
        """What is kept. See `Asker`."""
        outcomes = [self.store.get(request.key) for request in requests]
        found = [outcome for outcome in outcomes if outcome is not None]
        if len(found) < len(outcomes):
            raise UserError(
                f"judge {self.judge}: {len(outcomes) - len(found)} answers that its batch gave are "
                "not in the verdict store; delete results/asked and run again"
            )
        return found


def asker_for(
    judge: str,
    entry: Mapping[str, Any],
    limits: Mapping[str, Any],
    store: Path,
    *,
    batch: bool = False,
    asked: bool = False,
) -> Asker:
    """One by one, in a batch, or not at all; see `judges.judge_for`."""
    pace, answers = Limits.of(limits), AnswerStore(store)
    if asked:
        return StoredAsker(judge, answers)

    def connect() -> Endpoint:
        return Endpoint(judge, entry, pace)

    return (BatchAsker if batch else LiveAsker)(connect, answers, pace)
