"""Rotation by position: angles from the model's own rotary module, products in fp32.

On a CPU only `rotate` rotates queries and keys.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from kvfidelity.cache.scores import NotCollectedError

if TYPE_CHECKING:
    from kvfidelity.cache.calibration import Calibration


class IdentityRotary(nn.Module):
    """Replaces a model's rotary module, so that queries and keys arrive here un-rotated.

    It returns cos = 1 and sin = 0, so that every architecture's own rotation changes nothing. It
    keeps the real module for `angles`, and names the decoder, its output projections and its
    calibration, so that all that a cache needs of its model is in one place.
    """

    def __init__(
        self,
        rotary: nn.Module,
        output_projections: Sequence[nn.Module | None] = (),
        decoder: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.rotary = rotary
        # In a tuple, so that they are not registered as this module's parameters too.
        self._output_projections = tuple(output_projections)
        self._decoder = (decoder,)
        self.calibration: Calibration | None = None
        # No table is dropped: a captured graph may hold the address of a shorter one.
        self._tables: dict[torch.device, list[tuple[Tensor, Tensor]]] = {}

    def forward(
        self, x: Tensor, position_ids: Tensor | None = None, **_: object
    ) -> tuple[Tensor, Tensor]:
        # Only the width is needed. One fixed position will do, and no index depends on the cache.
        first = torch.zeros(1, 1, dtype=torch.int64, device=x.device)
        cos, _sin = self.rotary(x[:1, :1], first)
        shape = (x.shape[0], x.shape[1], cos.shape[-1])
        return cos.new_ones(shape), cos.new_zeros(shape)

    @property
    def device(self) -> torch.device:
        """The device of the model's rotary module."""
        rotary: Any = self.rotary
        device: torch.device = rotary.inv_freq.device
        return device

    def angles(self, position: Tensor, device: torch.device) -> tuple[Tensor, Tensor]:
        """cos and sin of the given positions.

        Args:
            position: int64 [..., n].

        Returns:
            Two fp32 tensors [..., n, r], r the rotary width (at most the head size). An
            architecture's attention scaling is included, as in its own rotary module.
        """
        flat = position.reshape(1, -1).to(device)
        dtype_like = torch.empty(1, 1, dtype=torch.float32, device=device)
        cos, sin = self.rotary(dtype_like, flat)
        shape = (*position.shape, cos.shape[-1])  # of no position too
        return cos.view(shape), sin.view(shape)

    @property
    def decoder(self) -> nn.Module:
        """The decoder that this module is part of, for an extra forward.

        Raises:
            NotCollectedError: it is not known.
        """
        if self._decoder[0] is None:
            raise NotCollectedError("no extra forward: this cache does not know its model")
        return self._decoder[0]

    @property
    def has_output_projections(self) -> bool:
        """Whether every layer's output projection is known."""
        known = self._output_projections
        return bool(known) and all(isinstance(module, nn.Linear) for module in known)

    def output_projection(self, layer: int, size: int) -> Tensor:
        """One layer's output projection by query head, [H, d, hidden] for heads of `size`.

        Raises:
            NotCollectedError: the layer has no linear module `o_proj`.
        """
        known = self._output_projections
        module = known[layer] if layer < len(known) else None
        if not isinstance(module, nn.Linear):
            raise NotCollectedError("this architecture has no output projection `o_proj`")
        weight = module.weight.detach()
        return weight.T.reshape(-1, size, weight.shape[0])

    def table(self, count: int, device: torch.device) -> tuple[Tensor, Tensor]:
        """cos and sin of positions 0 to at least `count` - 1, two fp32 tensors [P, r / 2].

        In every supported architecture both halves of the rotary width have the same angles.
        """
        tables = self._tables.setdefault(device, [])
        if not tables or tables[-1][0].shape[0] < count:
            size = max(8192, 1 << (count - 1).bit_length())
            cos, sin = self.angles(torch.arange(size), device)
            half = cos.shape[-1] // 2
            tables.append((cos[:, :half].contiguous(), sin[:, :half].contiguous()))
        return tables[-1]


def rotate_back(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """What `rotate` makes `x` of, at the same angles; an attention scaling is undone too."""
    size = cos**2 + sin**2
    return rotate(x, cos / size, -sin / size)


def rotate(x: Tensor, cos: Tensor, sin: Tensor, out: Tensor | None = None) -> Tensor:
    """Rotate the first r of d features in fp32 (Su et al. 2021, half-split layout).

    Args:
        x: [..., n, d] queries or keys in any floating dtype.
        cos, sin: fp32, broadcastable to [..., n, r].
        out: where to write, [..., n, d], the dtype of `x`; a new tensor otherwise.
    """
    width = cos.shape[-1]
    half = width // 2
    first, second = x[..., :half].float(), x[..., half:width].float()
    out = torch.empty_like(x) if out is None else out
    out[..., :half] = first * cos[..., :half] - second * sin[..., :half]
    out[..., half:width] = second * cos[..., half:] + first * sin[..., half:]
    if width < x.shape[-1]:
        out[..., width:] = x[..., width:]
    return out
