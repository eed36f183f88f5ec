"""Chooses how a judge's requests are sent: one by one, in a batch, or not at all."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kvfidelity.errors import UserError
from kvfidelity.judges.batch import BatchClient
from kvfidelity.judges.endpoint import Endpoint
from kvfidelity.judges.online import OnlineClient
from kvfidelity.judges.requests import Client, Limits, Outcome, Request
from kvfidelity.judges.store import AnswerStore


@dataclass(frozen=True)
class StoredClient:
    """Sends nothing: a batch asked for everything before."""

    judge: str
    store: AnswerStore

    def complete(self, requests: Sequence[Request]) -> list[Outcome]:
        """The stored outcomes. See `Client`."""
        outcomes = [self.store.get(request.key) for request in requests]
        found = [outcome for outcome in outcomes if outcome is not None]
        if len(found) < len(outcomes):
            raise UserError(
                f"judge {self.judge}: {len(outcomes) - len(found)} answers that its batch gave are "
                "not in the verdict store; delete the results' folder judge_batches and run again"
            )
        return found


def build_client(
    judge: str,
    entry: Mapping[str, Any],
    limits: Mapping[str, Any],
    store: Path,
    *,
    batch: bool = False,
    from_batch: bool = False,
) -> Client:
    """A client for a judge's requests; see `registry.build_judge` for the arguments."""
    pacing, answers = Limits.of(limits), AnswerStore(store)
    if from_batch:
        return StoredClient(judge, answers)

    def connect() -> Endpoint:
        return Endpoint(judge, entry, pacing)

    return (BatchClient if batch else OnlineClient)(connect, answers, pacing)
