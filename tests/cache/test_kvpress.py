"""The same kept indices as kvpress on the same tensors, or the difference explained.

kvpress_reference.py wrote kvpress.json in a separate environment.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from kvfidelity.cache.policies import build_policy
from kvfidelity.cache.view import CacheView, LayerView
from tests.cache.crosscheck import BUDGET, SEEDS, SIZE, SLOTS, WINDOW, tensors

KEPT = json.loads(Path(__file__).with_name("kvpress.json").read_text())["kept"]
PARAMETERS: dict[str, dict[str, Any]] = {
    "snapkv": {"window": WINDOW, "kernel": 5},
    "streaming_llm": {"sinks": 4},
}


def unrotated(position: torch.Tensor, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    shape = (*position.shape, SIZE)
    return torch.ones(shape), torch.zeros(shape)


def kept(kind: str, seed: int) -> torch.Tensor:
    given = tensors(seed)
    window = given["queries"] if kind == "snapkv" else given["queries"][:, -1:]
    layer = LayerView(given["keys"], lambda: given["keys"], given["values"], window)
    index = torch.arange(SLOTS)[None, None]
    view = CacheView(
        budget=BUDGET,
        token_index=index,
        position=index,
        next_position=SLOTS,
        tokens_seen=SLOTS,
        rng=np.random.default_rng(0),
        layers=[layer],
        scaling=SIZE**-0.5,
        angles=unrotated,
    )
    return build_policy(kind, PARAMETERS.get(kind, {})).keep(view)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("kind", ["snapkv", "keydiff", "knorm"])
def test_the_same_slots_per_head(kind: str, seed: int) -> None:
    assert kept(kind, seed)[0].tolist() == KEPT[kind][str(seed)]


@pytest.mark.parametrize("seed", SEEDS)
def test_streaming_llm_keeps_the_same_slots_for_every_head(seed: int) -> None:
    assert [kept("streaming_llm", seed).tolist()] * 2 == KEPT["streaming_llm"][str(seed)]


@pytest.mark.parametrize("seed", SEEDS)
def test_tova_differs_only_in_the_last_slot(seed: int) -> None:
    """kvpress always keeps the last slot, as its docs say; TOVA ranks it like any other."""
    ours, theirs = kept("tova", seed)[0].tolist(), KEPT["tova"][str(seed)]
    assert theirs[0] == theirs[1], "one keep set for all heads of a layer"
    assert set(theirs[0]) - {SLOTS - 1} <= set(ours)
    assert len(set(ours) - set(theirs[0])) <= 1
