"""The work of a job, in a worker or in the job's own process."""

from __future__ import annotations

import functools
import json
import platform
import sys
import threading
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kvfidelity.models.checksums import PROVENANCE, differ_in_weights_alone
from kvfidelity.records.notes import MADE, VERSION
from kvfidelity.sizes import size_in_bytes
from kvfidelity.worker.job import GenerateJob, Job, LikelihoodJob, WorkerConfig
from kvfidelity.worker.processor import gpu_name, processor
from kvfidelity.worker.usage import Usage

if TYPE_CHECKING:
    import polars as pl

    from kvfidelity.decoding.engine import Engine
    from kvfidelity.prefix.disk_cache import DiskPrefixCache

Progress = Callable[[dict[str, Any]], None]
PACKAGES = ("torch", "transformers", "tokenizers", "numpy", "polars")
#: Baselines on disk, relative to the workflow's folder.
PREFIX_FOLDER = Path(".snakemake/kvfidelity-prefixes")
#: Calibrations of models, relative to the workflow's folder; see `generation.calibration`.
CALIBRATION_FOLDER = Path("resources/calibrations")


class Records:
    """What a run computed: its tables, until the content of its files is made from them.

    Args:
        frames: the tables by kind. notes: of their artifacts. usage: what the run took.
    """

    def __init__(
        self, frames: dict[str, pl.DataFrame], notes: dict[str, str], usage: dict[str, str]
    ) -> None:
        self._frames, self._notes, self._usage = frames, notes, usage
        self._files: dict[str, memoryview] = {}
        self._lock = threading.Lock()
        #: Bytes of what is kept: of the tables estimated, of the files' content exact.
        self.nbytes = sum(int(frame.estimated_size()) for frame in frames.values())

    def files(self) -> dict[str, memoryview]:
        """The content of the artifacts by kind, in the order in which they are written.

        Several threads may ask: it is made once, and the tables are not kept.
        """
        from kvfidelity.records.artifacts import parquet_content

        with self._lock:
            if self._frames:
                found = {}
                for kind in ("evictions", "turns"):
                    notes = self._notes | (self._usage if kind == "turns" else {})
                    found[kind] = parquet_content(self._frames[kind], kind=kind, metadata=notes)
                self._files, self._frames = found, {}
                self.nbytes = sum(content.nbytes for content in found.values())
            return self._files


class Generator:
    """A loaded model that does jobs and writes their artifacts.

    Args:
        previous: a generator that is used no more, whose model this one's differs from in its
            weights alone (`only_weights_differ`): they replace those, and no model is loaded.

    Raises:
        UserError: the model cannot be loaded.
    """

    def __init__(self, config: WorkerConfig, previous: Generator | None = None) -> None:
        import torch

        from kvfidelity.decoding.engine import Engine
        from kvfidelity.prefix.cache import PrefixCache
        from kvfidelity.prefix.memory import prefix_bytes

        torch.set_num_threads(config.threads)
        self._config = config
        if previous is None:
            engine = Engine.load(Path(config.model_dir), config.dtype, config.device)
        else:
            previous.free_memory()
            engine = previous.engine.with_weights(Path(config.model_dir))
        self.engine: Engine = replace(engine, calibrations=CALIBRATION_FOLDER.resolve())
        self._prefix_cache = PrefixCache(
            prefix_bytes(config.prefix_memory, self.engine.device),
            _disk_prefix_cache(config, self.engine),
            store_all=config.store_prefixes == "all",
        )

    def free_memory(self) -> None:
        """Free all cached memory that only saves time."""
        import torch

        self._prefix_cache.clear()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def compute(
        self,
        spec: str,
        pool: str,
        dialogue: str,
        progress: Progress,
        engine: Engine | None = None,
    ) -> Records:
        """Run one dialogue.

        Args:
            spec: a RunSpec as JSON. pool: path of the dialogues. dialogue: its ordinal.
            engine: an engine that computes in a batch; by default `self.engine`.

        Raises:
            UserError: a specification or dialogue that cannot be run.
        """
        import torch

        from kvfidelity.dialogues.pool import read_dialogue
        from kvfidelity.generation.calibration import calibration_notes
        from kvfidelity.generation.plan import policy_of
        from kvfidelity.generation.run import run_dialogue
        from kvfidelity.generation.spec import RunSpec
        from kvfidelity.records.notes import input_notes

        usage, run_spec = self._usage(engine), RunSpec.from_json(spec)
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()
        found = run_dialogue(
            engine or self.engine,
            read_dialogue(Path(pool), dialogue),
            run_spec,
            self._prefix_cache,
            progress,
        )
        print(self._prefix_cache.summary, file=sys.stderr, flush=True)
        notes = self._notes() | {"spec": spec, "dtype": self._config.dtype}
        notes |= calibration_notes(self.engine, policy_of(run_spec))
        record = Path(self._config.model_dir) / PROVENANCE
        notes |= input_notes(pool=Path(pool), model=record)
        return Records(found._asdict(), notes, usage.notes())

    def write(self, records: Records, job: GenerateJob) -> None:
        """Write a run's artifacts; the turns are written last."""
        from kvfidelity.records.artifacts import write_content

        for kind, content in records.files().items():
            write_content(content, Path(getattr(job, kind)))

    def score(self, job: LikelihoodJob, engine: Engine | None = None) -> None:
        """Write the likelihood of a table of replies.

        Args:
            engine: as for `compute`; used only to note that other runs share the process.

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
        notes = dict(_versions())
        notes["hardware"] = gpu_name(torch.cuda.get_device_name(device)) if cuda else processor()
        notes[MADE] = datetime.now(UTC).isoformat(timespec="seconds")
        chat = json.dumps(self.engine.segmenter.notes, sort_keys=True)
        return notes | {"code": self._config.code_digest, "chat": chat}

    def _usage(self, engine: Engine | None) -> Usage:
        return Usage(batch_size=1 if engine is None else self._config.batch_size)


def only_weights_differ(one: WorkerConfig, other: WorkerConfig) -> bool:
    """Whether a worker of one configuration can go on with the other one's weights."""
    renamed = replace(one, model_dir=other.model_dir, model_revision=other.model_revision)
    if renamed != other:
        return False
    try:
        return differ_in_weights_alone(Path(one.model_dir), Path(other.model_dir))
    except OSError:  # for a worker of its own to say
        return False


@functools.cache
def _versions() -> dict[str, str]:
    """Notes of the packages that this process has loaded; each version is a search in files."""
    notes = {VERSION + name: version(name) for name in PACKAGES}
    return notes | {VERSION + "python": platform.python_version()}


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
    """Do a job of either kind; `engine` as for Generator.compute."""
    if isinstance(job, LikelihoodJob):
        generator.score(job, engine)
    else:
        records = generator.compute(job.spec, job.pool, job.dialogue, progress, engine)
        generator.write(records, job)
