"""Each baseline is computed once, also if memory holds only a few."""

from __future__ import annotations

import dataclasses
import random
from pathlib import Path

import pytest

from kvfidelity.decoding.engine import Engine
from kvfidelity.decoding.scheduler import run_batch
from kvfidelity.errors import UserError
from kvfidelity.generation.run import run_dialogue
from kvfidelity.prefix.cache import PrefixCache
from kvfidelity.prefix.memory import prefix_bytes
from kvfidelity.sizes import MOST_SHARED_ON_CPU, most_host_bytes
from tests.generation.test_run import BASE, talk
from tests.prefix.runs import baseline_run, disk_cache

LENGTHS = (3, 4, 5, 6)
CELLS = [(turns, positions) for turns in LENGTHS for positions in ("stale", "rerotated")] * 2


@pytest.mark.parametrize("batch_size", [1, 3])
@pytest.mark.parametrize("order", ["by dialogue", "shuffled"])
def test_once_per_dialogue_for_a_grid_larger_than_the_memory(
    engine: Engine,
    tmp_path: Path,
    batch_size: int,
    order: str,
) -> None:
    room = baseline_run(engine, turns=6).nbytes + 1
    prefixes = PrefixCache(room, disk_cache(engine, tmp_path))
    cells = list(CELLS)
    if order == "shuffled":
        random.Random(0).shuffle(cells)
    run_batch(
        engine,
        [
            lambda at, turns=turns, positions=positions: run_dialogue(
                at, talk(turns), dataclasses.replace(BASE, positions=positions), prefixes
            )
            for turns, positions in cells
        ],
        batch_size,
    )
    assert prefixes.computed == len(LENGTHS)
    assert prefixes.computed + prefixes.loaded + prefixes.shared == len(cells)
    assert prefixes.summary.startswith(f"prefixes: {len(LENGTHS)} computed, ")


def test_what_memory_holds_is_not_written(engine: Engine, tmp_path: Path) -> None:
    prefixes = PrefixCache(1 << 30, disk_cache(engine, tmp_path))
    run_dialogue(engine, talk(3), BASE, prefixes)
    assert not list(tmp_path.iterdir())


def test_a_share_of_the_memory(engine: Engine) -> None:
    assert 0 < prefix_bytes("0.001%", engine.device) < prefix_bytes("100%", engine.device)
    assert prefix_bytes("100%", engine.device) <= MOST_SHARED_ON_CPU == most_host_bytes("1%")
    assert prefix_bytes("3MiB", engine.device) == most_host_bytes("3MiB") == 3 * 2**20
    with pytest.raises(UserError, match="half"):
        most_host_bytes("half")
