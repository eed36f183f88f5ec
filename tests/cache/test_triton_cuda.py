"""The GPU's kernels against attention in fp64."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from kvfidelity.cache.rotary import rotate
from kvfidelity.cache.triton.layout import LayerField, SequenceField, row
from tests.cache.test_scores import eager

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="PyTorch sees no GPU here"),
]
#: Largest relative error (by norm) of outputs and of score sums.
TOLERANCE = {torch.float32: 1e-5, torch.float16: 1e-3, torch.bfloat16: 8e-3}
DTYPES = list(TOLERANCE)
HALVES = {size: size // 2 for size in (16, 64, 96, 128)}


def error(found: torch.Tensor, expected: torch.Tensor) -> float:
    found, expected = found.double().cpu(), expected.double().cpu()
    assert found.isfinite().all()
    return float((found - expected).norm() / expected.norm())


def normal(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(*shape, device="cuda").to(dtype)


def table(positions: int, half: int) -> tuple[torch.Tensor, torch.Tensor]:
    inverse = 10000.0 ** -(torch.arange(half, device="cuda") / half)
    angles = torch.arange(positions, device="cuda")[:, None] * inverse
    return angles.cos(), angles.sin()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    ("size", "ratio", "new", "slots"),
    [
        (16, 7, 64, 64),
        (64, 1, 300, 300),
        (64, 3, 129, 700),
        (96, 8, 1000, 1025),
        (128, 4, 1, 513),
        (128, 2, 5, 2000),
        (128, 4, 4096, 4096),
    ],
)
def test_many_queries(dtype: torch.dtype, size: int, ratio: int, new: int, slots: int) -> None:
    """Output, log-sum-exp and score sums; queries that follow cached slots; ragged lengths."""
    from kvfidelity.cache.triton import prefill

    # As in a forward: queries are a transposed view, keys are part of a longer buffer.
    query = normal(new, 2 * ratio, size, dtype=dtype).transpose(0, 1)
    key = normal(2, slots + 31, size, dtype=dtype)[:, :slots]
    value = normal(2, slots + 31, size, dtype=dtype)[:, :slots]
    expected, weights = eager(query, key, value, size**-0.5)
    for forward in (prefill.attend_with_lse, prefill._forward):
        out, lse = forward(query, key, value, size**-0.5)
        sums = prefill.score_sums(query, key, lse, size**-0.5)
        assert error(out, expected) < TOLERANCE[dtype]
        assert error(sums, weights.sum(1)) < TOLERANCE[dtype]
        assert torch.allclose(sums.sum(1), torch.full_like(sums[:, 0], new), rtol=1e-2)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("size", "half"), [*HALVES.items(), (96, 24), (6, 3)])
def test_rotation_by_position(dtype: torch.dtype, size: int, half: int) -> None:
    """Against `cache.rotary.rotate`, per head too, and with part of a head rotated."""
    from kvfidelity.cache.triton.prefill import rotate_by

    cos, sin = table(9000, half)
    x = normal(4, 777, size, dtype=dtype)
    for groups in (1, 4):
        position = torch.randint(0, 9000, (groups, 777), device="cuda")
        both = [torch.cat([angle, angle], -1)[position] for angle in (cos, sin)]
        found = rotate_by(x, position.int(), cos, sin)
        assert error(found, rotate(x, *both)) < (1e-6 if dtype is torch.float32 else 1e-3)


class DeviceCache:
    """One cache's buffers with random content, and its rows of the step table."""

    def __init__(self, slots: int, heads: int, groups: int, size: int, dtype: Any) -> None:
        room = slots + 100
        self.slots, self.alive = slots, True
        self.keys, self.values = (normal(groups, room, size, dtype=dtype) for _ in range(2))
        self.latest, self.sums = normal(heads, room), normal(heads, room).abs()
        self.ring = torch.zeros(heads, 4, size, dtype=dtype, device="cuda")
        self.positions = torch.randint(0, 8000, (groups, room), device="cuda").int()

    def rows(self) -> list[int]:
        buffers = {
            LayerField.KEYS: self.keys,
            LayerField.VALUES: self.values,
            LayerField.LATEST_SCORES: self.latest,
            LayerField.ACCUMULATED_SCORES: self.sums,
            LayerField.QUERY_RING: self.ring,
            LayerField.POSITIONS: self.positions,
        }
        return row(LayerField, {field: buffer.data_ptr() for field, buffer in buffers.items()})

    def fields(self, cos: torch.Tensor, sin: torch.Tensor) -> list[int]:
        room = self.keys.shape[1]
        values = {
            SequenceField.SLOTS: self.slots,
            SequenceField.NEXT_POSITION: 8100,
            SequenceField.ALIVE: int(self.alive),
            SequenceField.CAPACITY: room,
            SequenceField.POSITIONS_STRIDE: room,
            SequenceField.SCORES_CAPACITY: room,
            SequenceField.RING_SIZE: 4,
            SequenceField.RING_INDEX: 3,
            SequenceField.COS: cos.data_ptr(),
            SequenceField.SIN: sin.data_ptr(),
        }
        return row(SequenceField, values)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    ("size", "half", "ratio", "groups"),
    [(64, 32, 3, 3), (96, 48, 1, 3), (96, 24, 8, 2), (128, 64, 4, 8), (16, 8, 7, 1), (6, 3, 2, 2)],
)
def test_one_query_per_sequence(
    dtype: torch.dtype, size: int, half: int, ratio: int, groups: int
) -> None:
    """Sequences of any length, positions per head, one sequence that is not alive."""
    from kvfidelity.cache.triton.decode import decode

    heads, lengths = groups * ratio, [0, 1, 63, 64, 1000, 5600, 77]
    cos, sin = table(8192, half)
    caches = [DeviceCache(slots, heads, groups, size, dtype) for slots in lengths]
    caches[-1].alive = False
    before = [{**vars(cache), "sums": cache.sums.clone()} for cache in caches]
    dead = SimpleNamespace(keys=caches[-1].keys.clone(), latest=caches[-1].latest.clone())
    query = normal(len(caches), heads, 1, size, dtype=dtype)
    key, value = (normal(len(caches), groups, 1, size, dtype=dtype) for _ in range(2))
    fields = torch.tensor([cache.fields(cos, sin) for cache in caches], device="cuda")
    rows = torch.tensor([cache.rows() for cache in caches], device="cuda")
    out = decode(query, key, value, fields, rows, half, size**-0.5)
    for index, cache in enumerate(caches[:-1]):
        n = cache.slots
        assert torch.equal(cache.keys[:, n], key[index, :, 0])
        assert torch.equal(cache.values[:, n], value[index, :, 0])
        assert (cache.positions[:, n] == 8100).all()
        assert torch.equal(cache.ring[:, 3], query[index, :, 0])
        offset = cache.positions[:, : n + 1].long()
        both = [torch.cat([angle, angle], -1) for angle in (cos, sin)]
        keys = rotate(cache.keys[:, : n + 1], *(angle[offset] for angle in both))
        turned = rotate(query[index], *(angle[[8100]] for angle in both))
        expected, weights = eager(turned, keys, cache.values[:, : n + 1], size**-0.5)
        assert error(out[index, 0], expected[:, 0]) < TOLERANCE[dtype]
        assert error(cache.latest[:, : n + 1], weights[:, 0]) < TOLERANCE[dtype]
        old = before[index]["sums"][:, : n + 1].clone()
        old[:, n] = 0
        assert error(cache.sums[:, : n + 1], old + weights[:, 0]) < TOLERANCE[dtype]
        assert torch.equal(cache.sums[:, n + 1 :], before[index]["sums"][:, n + 1 :])
    assert not out[-1].any()
    assert torch.equal(caches[-1].keys, dead.keys) and torch.equal(caches[-1].latest, dead.latest)
