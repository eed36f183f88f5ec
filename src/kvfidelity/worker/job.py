"""What a job asks of a worker: its configuration, and a run or a table of texts to score.

Each job's own process imports this and nothing that takes long: `worker.generator` does the work.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

#: The runs that the workflow will make, relative to its folder; see `pipeline.planned_runs`.
PLANNED_RUNS = Path(".snakemake/kvfidelity-planned-runs.json")


@dataclass(frozen=True)
class WorkerConfig:
    """What a worker is started with; a job with any other value needs another worker."""

    model_dir: str
    model_revision: str
    dtype: str
    device: str
    code_digest: str
    prefix_memory: str
    prefix_disk: str
    store_prefixes: str
    threads: int
    batch_size: int
    policies_digest: str = ""
    """Digest of all built-in policies: they stay imported, and `code_digest` leaves them out."""

    @classmethod
    def of(cls, values: dict[str, Any]) -> WorkerConfig:
        """From a message."""
        return cls(**values)


@dataclass(frozen=True)
class GenerateJob:
    """One cell and dialogue: `spec` is a RunSpec as JSON."""

    spec: str
    pool: str
    dialogue: str
    turns: str
    evictions: str


@dataclass(frozen=True)
class LikelihoodJob:
    """Score the likelihood of replies: paths of the table of texts and of the output."""

    texts: str
    likelihood: str


Job = GenerateJob | LikelihoodJob


def job_from(values: Any) -> Job:
    """A job from a message.

    Raises:
        ValueError: the message has other fields than a job, or fields that are no text.
    """
    if not isinstance(values, dict) or not all(isinstance(text, str) for text in values.values()):
        raise ValueError("a job is an object of texts")
    try:
        return LikelihoodJob(**values) if "texts" in values else GenerateJob(**values)
    except TypeError as error:
        raise ValueError(f"not a job: {error}") from None
