"""What a generate job does, in a worker or in its own process."""

from __future__ import annotations

import platform
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kvfidelity.fingerprint import stage_fingerprint
from kvfidelity.models.integrity import PROVENANCE
from kvfidelity.sizes import size_in_bytes
from kvfidelity.worker.usage import Usage

if TYPE_CHECKING:
    from kvfidelity.session.engine import Engine
    from kvfidelity.session.prefix.shelf import Shelf

Progress = Callable[[dict[str, Any]], None]
PACKAGES = ("torch", "transformers", "tokenizers", "numpy", "polars")
#: Where runs that never evict outlive their process, relative to the workflow's folder.
PREFIXES = Path(".snakemake/kvfidelity-prefixes")


@dataclass(frozen=True)
class Hello:
    """What a worker is for: another one is needed as soon as any of this differs."""

    model_dir: str
    model_revision: str
    dtype: str
    device: str
    fingerprint: str
    prefix_memory: str
    prefix_disk: str
    threads: int
    lanes: int

    @classmethod
    def of(cls, values: dict[str, Any]) -> Hello:
        """From a message."""
        return cls(**values)


@dataclass(frozen=True)
class Request:
    """One cell and dialogue: `spec` is a RunSpec as JSON."""

    spec: str
    pool: str
    dialogue: str
    turns: str
    evictions: str
    recall: str


@dataclass(frozen=True)
class Scoring:
    """Replies whose likelihood is wanted: a table of texts, and where their numbers go."""

    texts: str
    likelihood: str


Wanted = Request | Scoring


def wanted(values: dict[str, Any]) -> Wanted:
    """A request from a message."""
    return Scoring(**values) if "texts" in values else Request(**values)


class Generator:
    """A loaded model that turns requests into artifacts."""

    def __init__(self, hello: Hello) -> None:
        import torch

        from kvfidelity.session.engine import Engine
        from kvfidelity.session.prefix.bank import PrefixBank

        torch.set_num_threads(hello.threads)
        self._hello = hello
        self.engine = Engine.load(Path(hello.model_dir), hello.dtype, hello.device)
        self._bank = PrefixBank(size_in_bytes(hello.prefix_memory), _shelf(hello, self.engine))

    def forget(self) -> None:
        """Let go of all memory that only saves time."""
        import torch

        self._bank.forget()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def serve(self, request: Request, progress: Progress, engine: Engine | None = None) -> None:
        """Run one dialogue and write its artifacts; the turns come last, so with them it is whole.

        Args:
            engine: this one's, or one of its that decodes with others.

        Raises:
            UserError: a specification or dialogue that cannot be run.
        """
        import torch

        from kvfidelity.artifacts import write_parquet
        from kvfidelity.dialogues.pool import read_dialogue
        from kvfidelity.session.run import run_dialogue
        from kvfidelity.session.spec import RunSpec
        from kvfidelity.staleness import input_notes

        usage = self._usage(engine)
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()
        spec = RunSpec.from_json(request.spec)
        dialogue = read_dialogue(Path(request.pool), request.dialogue)
        records = run_dialogue(engine or self.engine, dialogue, spec, self._bank, progress)
        notes = self._notes() | {"spec": request.spec, "dtype": self._hello.dtype}
        record = Path(self._hello.model_dir) / PROVENANCE
        notes |= input_notes(pool=Path(request.pool), model=record)
        for kind in ("recall", "evictions", "turns"):
            path = Path(getattr(request, kind))
            if kind == "turns":
                notes |= usage.notes()
            write_parquet(getattr(records, kind), path, kind=kind, metadata=notes)

    def score(self, request: Scoring, engine: Engine | None = None) -> None:
        """Write how likely the model finds a table of replies.

        Args:
            engine: as for `serve`; it only says that other runs go on meanwhile.

        Raises:
            UserError: the table is missing or damaged.
        """
        from kvfidelity.artifacts import read_parquet, write_parquet
        from kvfidelity.session.likelihood import likelihoods

        usage = self._usage(engine)
        found = likelihoods(self.engine, read_parquet(Path(request.texts), kind="texts"))
        notes = self._notes() | usage.notes()
        write_parquet(found, Path(request.likelihood), kind="likelihood", metadata=notes)

    def _notes(self) -> dict[str, str]:
        """Which code, packages and hardware made an artifact."""
        import torch

        device = self.engine.device
        cuda = device.type == "cuda"
        notes = {f"version.{name}": version(name) for name in PACKAGES}
        notes["version.python"] = platform.python_version()
        notes["hardware"] = torch.cuda.get_device_name(device) if cuda else platform.machine()
        return notes | {"code": self._hello.fingerprint}

    def _usage(self, engine: Engine | None) -> Usage:
        return Usage(lanes=1 if engine is None else self._hello.lanes)


def _shelf(hello: Hello, engine: Engine) -> Shelf | None:
    """Where the engine's runs outlive this process, if they do."""
    from kvfidelity.session.prefix.shelf import Shelf

    most = size_in_bytes(hello.prefix_disk)
    if not most:
        return None
    about = {name: getattr(hello, name) for name in ("model_revision", "dtype")}
    # Replies decoded together differ from single ones in their last bits.
    about["lanes"] = str(hello.lanes)
    about["code"] = hello.fingerprint or stage_fingerprint("generate")
    return Shelf(PREFIXES.resolve(), most, engine, about)


def carry_out(
    generator: Generator, request: Wanted, progress: Progress, engine: Engine | None = None
) -> None:
    """Do what is wanted, of either kind; `engine` as for Generator.serve."""
    if isinstance(request, Scoring):
        generator.score(request, engine)
    else:
        generator.serve(request, progress, engine)
