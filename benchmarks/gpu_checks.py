"""Every GPU kernel against plain attention in fp64, at sizes that models have."""

from __future__ import annotations

import torch

from kvfidelity.cache.attention import attend_with_scores
from kvfidelity.cache.rotary import rotate
from kvfidelity.cache.triton import decode, prefill
from kvfidelity.cache.triton.compact import compact
from kvfidelity.cache.triton.layout import LayerField, SequenceField, row

TOLERANCE = {torch.float32: 1e-5, torch.float16: 1e-3, torch.bfloat16: 8e-3}


def check_kernels() -> str:
    """The largest relative error by norm for each element type.

    Raises:
        AssertionError: one is above its tolerance.
    """
    worst = dict.fromkeys(TOLERANCE, 0.0)
    for dtype, allowed in TOLERANCE.items():
        for size, ratio in ((64, 3), (96, 1), (128, 4)):
            for new, slots in ((2000, 2000), (333, 3001)):
                worst[dtype] = max(worst[dtype], many_queries(dtype, size, ratio, new, slots))
            worst[dtype] = max(worst[dtype], one_query(dtype, size, ratio, 5600))
        assert worst[dtype] < allowed, f"{dtype}: {worst[dtype]:.1e}"
    compaction()
    return ", ".join(f"{str(kind)[6:]} {error:.0e}" for kind, error in worst.items())


def many_queries(dtype: torch.dtype, size: int, ratio: int, new: int, slots: int) -> float:
    query = normal(2 * ratio, new, size).to(dtype)
    key, value = normal(2, slots, size).to(dtype), normal(2, slots, size).to(dtype)
    exact = attend_with_scores(query.double(), key.double(), value.double(), size**-0.5)
    found = prefill.attend_with_scores(query, key, value, size**-0.5)
    return max(error(one, other) for one, other in zip(found, exact, strict=True))


def one_query(dtype: torch.dtype, size: int, ratio: int, slots: int) -> float:
    heads, room, half = 2 * ratio, slots + 1, size // 2
    angle = torch.arange(8192, device="cuda")[:, None] / 500 ** torch.linspace(
        0, 1, half, device="cuda"
    )
    cos, sin = angle.cos(), angle.sin()
    keys, values = normal(2, room, size).to(dtype), normal(2, room, size).to(dtype)
    latest, sums = torch.zeros(2, heads, room, device="cuda")
    position = torch.randint(0, 8192, (2, room), device="cuda", dtype=torch.int32)
    query, key, value = (normal(1, count, 1, size).to(dtype) for count in (heads, 2, 2))
    sequence = {
        SequenceField.SLOTS: slots,
        SequenceField.NEXT_POSITION: 8000,
        SequenceField.ALIVE: 1,
        SequenceField.CAPACITY: room,
        SequenceField.POSITIONS_STRIDE: room,
        SequenceField.SCORES_CAPACITY: room,
        SequenceField.RING_SIZE: 0,
        SequenceField.RING_INDEX: 0,
        SequenceField.COS: cos.data_ptr(),
        SequenceField.SIN: sin.data_ptr(),
    }
    layer = {
        LayerField.KEYS: keys.data_ptr(),
        LayerField.VALUES: values.data_ptr(),
        LayerField.LATEST_SCORES: latest.data_ptr(),
        LayerField.ACCUMULATED_SCORES: sums.data_ptr(),
        LayerField.QUERY_RING: 0,
        LayerField.POSITIONS: position.data_ptr(),
    }
    sequences = torch.tensor([row(SequenceField, sequence)], device="cuda")
    layer_rows = torch.tensor([row(LayerField, layer)], device="cuda")
    out = decode.decode(query, key, value, sequences, layer_rows, half, size**-0.5)
    both = [torch.cat([turn, turn], -1) for turn in (cos, sin)]
    turned_keys = rotate(keys, *(turn[position.long()] for turn in both))
    turned = rotate(query[0], *(turn[[8000]] for turn in both))
    exact, weights = attend_with_scores(
        turned.double(), turned_keys.double(), values.double(), size**-0.5
    )
    return max(error(out[0, 0], exact[:, 0]), error(latest, weights), error(sums, weights))


def compaction() -> None:
    buffers = [normal(1, 2, 9000, 128).bfloat16() for _ in range(3)]
    before = [buffer.clone() for buffer in buffers]
    kept = torch.stack([torch.randperm(8192)[:2000].sort().values for _ in range(6)])
    kept = kept.view(3, 2, 2000).cuda()
    compact(buffers, kept)
    for buffer, old, slots in zip(buffers, before, kept, strict=True):
        index = slots[..., None].expand(-1, -1, 128)
        assert torch.equal(buffer[0, :, :2000], old[0].gather(1, index))


def normal(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, device="cuda")


def error(found: torch.Tensor, exact: torch.Tensor) -> float:
    assert found.isfinite().all()
    return float((found.double() - exact).norm() / exact.norm())
