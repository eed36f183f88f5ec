"""Keys that no others stand for."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from kvfidelity.cache.policies.base import Policy, parameter
from kvfidelity.cache.view import CacheView

#: Added to the diagonal of the sketched Gram matrix, as in kvpress.
JITTER = 1e-2


@dataclass(frozen=True)
class LeverageScore(Policy):
    """Keeps the keys of largest statistical leverage, per kv head (the geometric score of
    Compactor, arXiv 2507.08143).

    With X the un-rotated keys, centred and multiplied by a Gaussian sketch, a key's score is its
    entry of the diagonal of X (X^T X + 0.01 I)^-1 X^T. The sketch's size is that of kvpress 0.5.5.
    Departures: the sketch is drawn from the run's seed; the matrix is solved in float64, where
    kvpress tries larger jitters in float32; scores are not standardised over a layer, which changes
    no order within a kv head. The paper's blend with attention is left out.
    """

    kind: ClassVar[str] = "leverage_score"
    keep_sets: ClassVar[str] = "head"

    sketch: int = parameter(48, doc="columns of the Gaussian sketch", low=1)

    def priority(self, view: CacheView) -> Tensor:
        return torch.stack([self._layer(layer.keys, view) for layer in view.layers])

    def _layer(self, keys: Tensor, view: CacheView) -> Tensor:
        groups, _, size = keys.shape
        drawn = view.rng.standard_normal((groups, size, self.sketch))
        sketch = torch.from_numpy(drawn).to(keys.device) / self.sketch**0.5
        keys = keys.double()
        sketched = (keys - keys.mean(1, keepdim=True)) @ sketch
        gram = sketched.transpose(1, 2) @ sketched
        gram += JITTER * torch.eye(self.sketch, device=keys.device, dtype=gram.dtype)
        # It returns NaN for keys that are not finite, and does not raise.
        factor: Tensor = torch.linalg.cholesky_ex(gram).L
        solved: Tensor = torch.cholesky_solve(sketched.transpose(1, 2), factor)
        scores: Tensor = (sketched * solved.transpose(1, 2)).sum(-1)
        return scores.clamp(min=0)
