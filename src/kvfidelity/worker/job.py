"""The work of a job, in a worker or in the job's own process."""

from __future__ import annotations

import json
import platform
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kvfidelity.models.checksums import PROVENANCE
from kvfidelity.sizes import size_in_bytes
from kvfidelity.worker.usage import Usage

if TYPE_CHECKING:
    from kvfidelity.decoding.engine import Engine
    from kvfidelity.prefix.disk_cache import DiskPrefixCache

Progress = Callable[[dict[str, Any]], None]
PACKAGES = ("torch", "transformers", "tokenizers", "numpy", "polars")
#: Baselines on disk, relative to the workflow's folder.
PREFIX_FOLDER = Path(".snakemake/kvfidelity-prefixes")


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
    threads: int
    batch_size: int
    policies_digest: str = ""
    """Of all built-in policies: they stay imported, but are no part of `code_digest`."""

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
    recall: str


@dataclass(frozen=True)
class LikelihoodJob:
    """Score the likelihood of replies: paths of the table of texts and of the output."""

    texts: str
    likelihood: str


Job = GenerateJob | LikelihoodJob


def job_from(values: dict[str, Any]) -> Job:
    """A job from a message."""
    return LikelihoodJob(**values) if "texts" in values else GenerateJob(**values)


class Generator:
    """A loaded model that does jobs and writes their artifacts."""

    def __init__(self, config: WorkerConfig) -> None:
        import torch

        from kvfidelity.decoding.engine import Engine
        from kvfidelity.prefix.cache import PrefixCache

        torch.set_num_threads(config.threads)
        self._config = config
        self.engine = Engine.load(Path(config.model_dir), config.dtype, config.device)
        self._prefix_cache = PrefixCache(
            size_in_bytes(config.prefix_memory), _disk_prefix_cache(config, self.engine)
        )

    def free_memory(self) -> None:
        """Free all cached memory that only saves time."""
        import torch

        self._prefix_cache.clear()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def serve(self, job: GenerateJob, progress: Progress, engine: Engine | None = None) -> None:
        """Run one dialogue and write its artifacts; the turns are written last.

        Args:
            engine: an engine that decodes in a batch; by default `self.engine`.

        Raises:
            UserError: a specification or dialogue that cannot be run.
        """
        import torch

        from kvfidelity.dialogues.pool import read_dialogue
        from kvfidelity.generation.run import run_dialogue
        from kvfidelity.generation.spec import RunSpec
        from kvfidelity.records.artifacts import write_parquet
        from kvfidelity.records.notes import input_notes

        usage = self._usage(engine)
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()
        spec = RunSpec.from_json(job.spec)
        dialogue = read_dialogue(Path(job.pool), job.dialogue)
        records = run_dialogue(engine or self.engine, dialogue, spec, self._prefix_cache, progress)
        notes = self._notes() | {"spec": job.spec, "dtype": self._config.dtype}
        record = Path(self._config.model_dir) / PROVENANCE
        notes |= input_notes(pool=Path(job.pool), model=record)
        for kind in ("recall", "evictions", "turns"):
            path = Path(getattr(job, kind))
            if kind == "turns":
                notes |= usage.notes()
            write_parquet(getattr(records, kind), path, kind=kind, metadata=notes)

    def score(self, job: LikelihoodJob, engine: Engine | None = None) -> None:
        """Write the likelihood of a table of replies.

        Args:
            engine: as for `serve`; used only to note that other runs share the process.

        Raises:
            UserError: the table is missing or corrupt.
        """
        from kvfidelity.generation.likelihood import score_replies
        from kvfidelity.records.artifacts import read_parquet, write_parquet

        usage = self._usage(engine)
        found = score_replies(self.engine, read_parquet(Path(job.texts), kind="corruptions"))
        notes = self._notes() | usage.notes()
        write_parquet(found, Path(job.likelihood), kind="likelihood", metadata=notes)

    def _notes(self) -> dict[str, str]:
        """The code, packages and hardware that an artifact was made with."""
        import torch

        device = self.engine.device
        cuda = device.type == "cuda"
        notes = {f"version.{name}": version(name) for name in PACKAGES}
        notes["version.python"] = platform.python_version()
        notes["hardware"] = torch.cuda.get_device_name(device) if cuda else platform.machine()
        chat = json.dumps(self.engine.segmenter.notes, sort_keys=True)
        return notes | {"code": self._config.code_digest, "chat": chat}

    def _usage(self, engine: Engine | None) -> Usage:
        return Usage(batch_size=1 if engine is None else self._config.batch_size)


def _disk_prefix_cache(config: WorkerConfig, engine: Engine) -> DiskPrefixCache | None:
    """The engine's baselines on disk; None if `prefix_disk` is 0."""
    from kvfidelity.prefix.disk_cache import DiskPrefixCache

    max_bytes = size_in_bytes(config.prefix_disk)
    if not max_bytes:
        return None
    environment = {name: getattr(config, name) for name in ("model_revision", "dtype")}
    # Replies decoded in a batch differ from single ones in their last bits.
    environment["batch_size"] = str(config.batch_size)
    environment["code"] = config.code_digest
    return DiskPrefixCache(PREFIX_FOLDER.resolve(), max_bytes, engine, environment)


def execute(
    generator: Generator, job: Job, progress: Progress, engine: Engine | None = None
) -> None:
    """Do a job of either kind; `engine` as for Generator.serve."""
    if isinstance(job, LikelihoodJob):
        generator.score(job, engine)
    else:
        generator.serve(job, progress, engine)
