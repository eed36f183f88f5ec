"""Runs that never evict, and where tests keep them."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest
import torch
from kvfidelity.artifacts import TIMINGS
from kvfidelity.session.engine import Engine
from kvfidelity.session.prefix.bank import PrefixBank
from kvfidelity.session.prefix.full import FullRun
from kvfidelity.session.prefix.shelf import Shelf
from kvfidelity.session.run import Records, _Run, run_dialogue
from kvfidelity.session.spec import RunSpec
from polars.testing import assert_frame_equal

from tests.session.test_recall import told
from tests.session.test_run import BASE, talk

ROOM = 1 << 30


def shelf_of(engine: Engine, folder: Path, room: int = ROOM, **about: str) -> Shelf:
    return Shelf(folder, room, engine, about)


def full_run(engine: Engine, spec: RunSpec = BASE, turns: int = 5) -> FullRun:
    return _Run(engine, talk(turns), spec, lambda event: None)._full_run()


def played(engine: Engine, spec: RunSpec, folder: Path, *, computes: bool = True) -> Records:
    """A process of its own, as far as memory goes; whether it may compute a never evicted run."""
    with pytest.MonkeyPatch.context() as patch:
        if not computes:
            patch.setattr(_Run, "_full_run", lambda self: pytest.fail("it was computed anew"))
        bank = PrefixBank(ROOM, shelf_of(engine, folder))
        return run_dialogue(engine, told(), spec, bank)


def assert_same_records(one: Records, other: Records) -> None:
    for mine, theirs in zip(one, other, strict=True):
        drop = TIMINGS & set(mine.columns)
        assert_frame_equal(mine.drop(drop), theirs.drop(drop), check_exact=True)


def the_file(folder: Path) -> Path:
    [file] = folder.iterdir()
    return file


def size_on_disk(engine: Engine, run: FullRun) -> int:
    with tempfile.TemporaryDirectory() as folder:
        shelf_of(engine, Path(folder)).keep("key", run)
        return the_file(Path(folder)).stat().st_size


def same_outcomes(one: FullRun, other: FullRun) -> bool:
    pairs = zip(one.outcomes, other.outcomes, strict=True)
    return all(torch.equal(a.predicted, b.predicted) for a, b in pairs)
