"""Policies that rank by the latest queries."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import avg_pool1d, pad

from kvfidelity.cache.policies.base import Policy, parameter, pin_ends
from kvfidelity.cache.view import CacheView


@dataclass(frozen=True)
class SnapKV(Policy):
    """Keeps what the latest queries attend to, smoothed over neighbours, per kv head
    (SnapKV, arXiv 2404.14469).

    The observation window itself is always kept. As in the paper, the window's attention is
    averaged over its queries and pooled with a kernel; window, kernel and average pooling are the
    defaults of the paper's code (kvpress has a window of 64). Departure: the mean over a kv head's
    query heads ranks the slots of that kv head, because the cache stores one copy per kv head.
    """

    kind: ClassVar[str] = "snapkv"
    keep_sets: ClassVar[str] = "head"

    window: int = parameter(32, doc="latest queries looked through", low=1)
    kernel: int = parameter(5, doc="width of the average pooling", low=1, odd=True)

    @property
    def query_window(self) -> int:
        return self.window

    def priority(self, view: CacheView) -> Tensor:
        return torch.stack([self._layer(view, index) for index in range(len(view.layers))])

    def _layer(self, view: CacheView, index: int) -> Tensor:
        attention = view.window_attention(index)
        groups = view.layers[index].keys.shape[0]
        heads, rows, slots = attention.shape
        votes = attention.mean(1)
        votes[:, slots - rows :] = 0  # the window's own slots cast no votes on their neighbours
        pooled = avg_pool1d(votes, self.kernel, stride=1, padding=self.kernel // 2)[:, :slots]
        rank = pooled.view(groups, heads // groups, slots).mean(1)
        return pin_ends(rank, 0, self.window, view.budget)


@dataclass(frozen=True)
class TOVA(Policy):
    """Keeps what the latest query attends to, one keep set per layer (TOVA, arXiv 2401.06104).

    As in the paper, the latest slot is ranked like any other; kvpress always keeps it.
    """

    kind: ClassVar[str] = "tova"
    keep_sets: ClassVar[str] = "layer"

    @property
    def query_window(self) -> int:
        return 1

    def priority(self, view: CacheView) -> Tensor:
        layers = range(len(view.layers))
        return torch.stack([view.window_attention(layer).mean((0, 1)) for layer in layers])


@dataclass(frozen=True)
class ExpectedAttention(Policy):
    """Keeps what future queries are expected to attend to, weighted by the value's norm, per kv
    head (Expected Attention, arXiv 2510.00636).

    Queries are assumed Gaussian with the mean and covariance of the latest `window` ones before
    rotation, and rotated by the average rotation over the next `horizon` positions. The sinks take
    no part in the softmax, and the queries of the first `sinks` tokens none in the statistics.
    Defaults are those of kvpress 0.5.5. Departure: the statistics come from the latest queries of
    the chat rather than from one prompt's.
    """

    kind: ClassVar[str] = "expected_attention"
    keep_sets: ClassVar[str] = "head"

    window: int = parameter(128, doc="latest queries whose statistics are used", low=2)
    horizon: int = parameter(512, doc="future positions averaged over", low=1)
    epsilon: float = parameter(0.0, doc="added to the expected attention before weighting", low=0)
    sinks: int = parameter(4, doc="first slots always kept", low=0)

    @property
    def query_window(self) -> int:
        return self.window

    def priority(self, view: CacheView) -> Tensor:
        rank = torch.stack([self._layer(view, index) for index in range(len(view.layers))])
        return pin_ends(rank, self.sinks, 0, view.budget)

    def _layer(self, view: CacheView, index: int) -> Tensor:
        layer = view.layers[index]
        queries = self._queries(view, index)
        mean = queries.mean(1)
        centred = queries - mean[:, None]
        covariance = centred.transpose(1, 2) @ centred / queries.shape[1]
        turn = self._average_rotation(view, queries)
        mean, covariance = mean @ turn.T, turn @ covariance @ turn.T

        groups, slots, _ = layer.keys.shape
        ratio, ranked = queries.shape[0] // groups, max(slots - self.sinks, 0)
        keys = layer.rotated_keys[:, slots - ranked :].float().repeat_interleave(ratio, dim=0)
        logits = torch.einsum("hnd,hd->hn", keys, mean) * view.scaling
        logits += torch.einsum("hnd,hde,hne->hn", keys, covariance, keys) * view.scaling**2 / 2
        expected = torch.softmax(logits, dim=-1).view(groups, ratio, ranked).mean(1)
        weight = layer.values[:, slots - ranked :].float().norm(dim=-1)
        return pad((expected + self.epsilon) * weight, (slots - ranked, 0))

    def _queries(self, view: CacheView, index: int) -> Tensor:
        """The latest queries, fp32 [H, w, d], without those of the first `sinks` tokens, which are
        outliers."""
        queries = view.recent_queries(index).float()
        first = view.tokens_seen - queries.shape[1]
        outliers = min(max(self.sinks - first, 0), queries.shape[1] - 1)
        return queries[:, outliers:]

    def _average_rotation(self, view: CacheView, queries: Tensor) -> Tensor:
        """The mean rotation matrix [d, d] over the next `horizon` positions."""
        assert view.angles is not None
        size = queries.shape[-1]
        ahead = torch.arange(view.next_position, view.next_position + self.horizon)
        cos, sin = (angle.mean(0) for angle in view.angles(ahead, queries.device))
        half = cos.shape[0] // 2
        turn = torch.eye(size, device=queries.device)
        first, second = torch.arange(half), torch.arange(half, 2 * half)
        turn[first, first], turn[second, second] = cos[:half], cos[half:]
        turn[first, second], turn[second, first] = -sin[:half], sin[half:]
        return turn
