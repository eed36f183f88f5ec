"""The step table on a CPU: what a captured decode step changes, by named fields."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
import torch

from kvfidelity.cache.attach import new_cache
from kvfidelity.cache.hooks import cache_argument
from kvfidelity.cache.triton.layout import LayerField, SequenceField, row
from kvfidelity.cache.triton.step_table import StepTable
from tests.cache.conftest import tiny

FOLDER = Path(__file__).parents[2] / "src/kvfidelity/cache/triton"
TENSORS = ("sequences", "layer_rows")


def test_a_step_adds_a_slot_to_each_living_sequence() -> None:
    """Two sequences; the second is deactivated after one step. The ring holds four queries."""
    table = StepTable(layers=3, batch_size=2, half=4, device=torch.device("cpu"))
    values = dict.fromkeys(SequenceField, 7)
    values |= {SequenceField.SLOTS: 10, SequenceField.NEXT_POSITION: 30, SequenceField.ALIVE: 1}
    values |= {SequenceField.RING_SIZE: 4, SequenceField.RING_INDEX: 2}
    table.sequences[:] = torch.tensor(row(SequenceField, values))
    table.advance()
    table.deactivate(1)
    table.advance()
    expected = [
        values
        | {SequenceField.SLOTS: 12, SequenceField.NEXT_POSITION: 32, SequenceField.RING_INDEX: 0},
        values
        | {SequenceField.SLOTS: 11, SequenceField.NEXT_POSITION: 31, SequenceField.RING_INDEX: 3}
        | {SequenceField.ALIVE: 0},
    ]
    assert table.sequences.tolist() == [row(SequenceField, each) for each in expected]
    assert table.alive.tolist() == [1, 0]


def test_rows_of_an_evicted_cache_are_those_of_a_fresh_table(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Addresses are written again only where a buffer has moved."""
    model = tiny("llama")
    cache = new_cache(model, "stale", collect_scores=True, query_window=4)
    ids = torch.randint(3, 97, (1, 60), generator=torch.Generator().manual_seed(0))
    layers, half = len(cache.layers), cache.rotary.table(1, ids.device)[0].shape[1]
    table = StepTable(layers, 2, half, ids.device)
    uploads = []
    monkeypatch.setattr(
        "kvfidelity.cache.triton.step_table.upload",
        lambda numbers, device: uploads.append(numbers) or numbers.to(device),
    )
    with torch.inference_mode():
        model(ids, **{cache_argument(model): cache})
        for moves, kept in ((1, None), (0, torch.arange(1, 60)), (1, torch.arange(20))):
            if kept is not None:
                cache.keep(kept)
            if moves and kept is not None:
                cache.reserve(1000)
            uploads.clear()
            table.admit(1, cache, alive=True, max_new_tokens=5)
            assert len(uploads) == moves
            fresh = StepTable(layers, 2, half, ids.device)
            fresh.admit(1, cache, alive=True, max_new_tokens=5)
            for name in TENSORS:
                assert torch.equal(getattr(table, name), getattr(fresh, name))


def test_fields_are_numbered_from_zero_without_gaps() -> None:
    for fields in (SequenceField, LayerField):
        assert [field.value for field in fields] == list(range(len(fields)))


def test_no_bare_number_indexes_the_step_table() -> None:
    for name in ("decode", "step_table", "head_step_table"):
        for node in ast.walk(ast.parse((FOLDER / f"{name}.py").read_text(encoding="utf-8"))):
            if isinstance(node, ast.BinOp) and ast.unparse(node.left) in TENSORS:
                assert not isinstance(node.right, ast.Constant), ast.unparse(node)
            if isinstance(node, ast.Call) and ast.unparse(node.func) in ("tl.load", "pointer_at"):
                assert ast.unparse(node.args[0]) not in TENSORS, ast.unparse(node)
            if isinstance(node, ast.Subscript) and ast.unparse(node.value) == "self.sequences":
                parts = [part for part in ast.walk(node.slice) if isinstance(part, ast.Constant)]
                numbers = [part for part in parts if part.value is not ...]
                assert not numbers, ast.unparse(node)
