"""What a policy is."""

from __future__ import annotations

import typing
from abc import ABC, abstractmethod
from dataclasses import MISSING, dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn.functional import pad

from kvfidelity.cache.overflow import first_overflow, overflow_error
from kvfidelity.cache.ragged import RaggedKeepSet, apportion
from kvfidelity.cache.scores import NotCollectedError
from kvfidelity.cache.view import CacheView
from kvfidelity.errors import UserError
from kvfidelity.options import check_option, option, option_fields


def parameter(default: Any = MISSING, *, doc: str, **allowed: Any) -> Any:
    """A dataclass field for a policy's parameter.

    Args:
        default: its value if the config does not set it; without one it is required.
        doc: what it means, for the documentation.
        allowed: `low`, `high`, `above`, `choices` and `odd` of `options.option`.
    """
    return option(default, doc=doc, **allowed)


def keep_ratio(default: Any = MISSING) -> Any:
    """The parameter `keep_ratio`, which several policies share."""
    doc = "share of the cached slots kept at an eviction where the threshold sets no target"
    return parameter(default, doc=doc, above=0, high=1)


#: What a config may say of a policy that another one wraps.
WRAPPED_SCHEMA: dict[str, Any] = {
    "type": ["string", "object"],
    "format": "policy",
    "required": ["kind"],
}


def wrapped_policy(default: Any = MISSING, *, doc: str) -> Any:
    """A dataclass field for a policy inside a policy; `build_policy` makes it.

    In a config it is a kind (`policy: knorm`) or an entry (`policy: {kind: snapkv, window: 16}`).
    """
    return option(default, doc=doc, schema=WRAPPED_SCHEMA)


def slots_for_ratio(slots: int, ratio: float) -> int:
    """That share of the slots, rounded down, at least 1 (as in the paper's code)."""
    return max(1, int(slots * ratio))


@dataclass(frozen=True)
class Policy(ABC):
    """Ranks the slots of a cache; frozen, so that several runs can share one object.

    A subclass is a frozen dataclass. It sets `kind`, its name in the config, declares each field
    with `parameter`, and implements `priority`.
    """

    kind: ClassVar[str]
    #: Whether the policy ever evicts; only the baseline does not.
    evicts: ClassVar[bool] = True
    #: Whether it ranks by attention scores; the cache then collects them.
    needs_scores: ClassVar[bool] = False
    #: Whether its budget differs between layers and kv heads; it then has `shares`.
    ragged: ClassVar[bool] = False
    #: Whether one keep set is for the whole cache (`shared`), each `layer` or each kv `head`; a
    #: parameter `granularity` says it instead.
    keep_sets: ClassVar[str] = "shared"
    #: Whether it looks at the layers' output projections.
    needs_output_projection: ClassVar[bool] = False
    #: Whether it looks at what is known of the model's heads, see `cache.calibration`.
    needs_calibration: ClassVar[bool] = False
    #: Whether it feeds the cached text again, see `cache.repetition`; the cache then keeps it.
    needs_extra_forward: ClassVar[bool] = False

    def __post_init__(self) -> None:
        hints = typing.get_type_hints(type(self))
        for item in option_fields(self):
            value = getattr(self, item.name)
            if wrong := check_option(item, hints[item.name], value):
                raise UserError(f"policy {self.kind}: {wrong}")
        chosen = getattr(self, "granularity", None)
        if chosen is not None:  # the dataclass is frozen
            object.__setattr__(self, "keep_sets", chosen)

    @property
    def query_window(self) -> int:
        """How many of the latest queries the policy looks through; it never sees more."""
        return 0

    def default_size(self, slots: int) -> int | None:
        """Slots that remain of `slots` if the threshold sets no target; None: it must set one."""
        return None

    def should_evict(self, view: CacheView) -> bool:
        """Whether the policy can rank now; if not, nothing is evicted.

        A policy that waits for scores waits before a turn under `trigger: paper` only, where the
        paper's code has none; anywhere else a cache without them is refused.
        """
        return self.evicts

    @abstractmethod
    def priority(self, view: CacheView) -> Tensor:
        """A number per slot; the slots with the highest survive.

        Returns:
            Any real dtype: [n] for one keep set, [L, n] for one per layer, [L, G, n] for one per kv
            head. Infinity pins a slot; NaN is refused.
        """

    def shares(self, view: CacheView, rank: Tensor) -> Tensor:
        """Of a policy that is `ragged`: how the slots that remain are shared out.

        Args:
            rank: [L, G, n]; aligned at the right if kv heads hold different numbers of slots, with
                minus infinity before a head's slots. Protected slots rank at infinity.

        Returns:
            Weights of any scale, at least 0: [L, G], or broadcastable to it. The total is always
            `budget` * L * G; no head gets fewer than one slot or the protected ones, or more than
            it holds.
        """
        return torch.ones(1, 1)

    def declared(self, view: CacheView) -> CacheView:
        """The view with what the policy declares, and nothing else that was collected."""
        return view.limited_to(
            scores=self.needs_scores,
            query_window=self.query_window,
            output_projection=self.needs_output_projection,
            calibration=self.needs_calibration,
            extra_forward=self.needs_extra_forward,
        )

    def rank(self, view: CacheView) -> Tensor:
        """`priority` as a floating-point tensor, of a view that shows what the policy declares.

        Raises:
            UserError, ModelOverflowError: as in `keep`.
        """
        rank = self._priority(self.declared(view))
        _refuse_nan(self.kind, rank, view)
        return rank

    def _priority(self, view: CacheView) -> Tensor:
        """`rank`, of a view that shows what is declared, but possibly with NaN."""
        try:
            rank = self.priority(view)
        except NotCollectedError as error:
            raise UserError(f"policy {self.kind} cannot rank: {error}") from None
        _check_shape(self.kind, rank, view)
        return rank if rank.is_floating_point() else rank.double()

    def keep(self, view: CacheView) -> Tensor | RaggedKeepSet:
        """The keep set: int64 [k], [L, k] or [L, G, k] with k = budget, sorted slots; or ragged.

        A shared one is on the CPU, as the slot table is; others stay on the device of the ranking.

        Raises:
            UserError: a ranking of another shape or type, or with NaN, or of something that the
                policy does not declare.
            ModelOverflowError: NaN, because keys, values or scores are not finite.
        """
        if self.ragged:
            return self._keep_ragged(view)
        if view.heads:
            raise UserError(
                f"policy {self.kind} keeps as many slots in every kv head, and this cache holds "
                "different numbers: evict from one cache by one policy"
            )
        view = self.declared(view)
        rank = self._priority(view)
        if rank.dim() == 1:  # one transfer; on a GPU each check and sort of so few waits for it
            rank = rank.cpu()
        _refuse_nan(self.kind, rank, view)
        # A policy may pin slots with infinity; protected slots still rank above them.
        highest = torch.finfo(rank.dtype).max
        rank = rank.clamp(-highest, highest)
        for start, stop in view.protected:
            rank[..., start:stop] = torch.inf
        size = min(view.budget, view.slots)
        best = torch.sort(rank, dim=-1, descending=True, stable=True).indices[..., :size]
        kept = torch.zeros_like(rank, dtype=torch.bool).scatter_(-1, best, True)
        return kept.nonzero()[:, -1].reshape(best.shape)

    def _keep_ragged(self, view: CacheView) -> RaggedKeepSet:
        rank = self._rank_by_head(view)
        counts, column = view.counts, torch.arange(rank.shape[-1], device=rank.device)
        first = (rank.shape[-1] - counts).to(rank.device)
        highest = torch.finfo(rank.dtype).max
        rank = rank.clamp(-highest, highest)
        fewest = 1
        for start, stop in view.protected:
            # Columns of heads that differ are aligned at the right, where protected slots are then.
            end = rank.shape[-1] - (view.slots - stop if view.heads else rank.shape[-1] - stop)
            rank[..., end - (stop - start) : end] = torch.inf
        if view.protected:
            fewest = max(1, int((rank == torch.inf)[0, 0].sum()))
        rank = rank.masked_fill(column < first[..., None], -torch.inf)
        size = min(view.budget, view.slots)
        shares = self._checked_shares(view, rank)
        low = counts.clamp(max=fewest)
        budgets = apportion(shares, size * counts.numel(), low, counts)
        order = torch.sort(rank, dim=-1, descending=True, stable=True).indices
        chosen = column < budgets.to(rank.device)[..., None]
        kept = torch.zeros_like(chosen).scatter_(-1, order, chosen)
        return RaggedKeepSet((column - first[..., None])[kept], budgets)

    def _rank_by_head(self, view: CacheView) -> Tensor:
        """[L, G, n] on the cache's device, aligned at the right."""
        layers, groups = view.grid
        first = view.heads[0][0] if view.heads else view
        device = first.layers[0].keys.device
        if not view.heads:
            rank = self.rank(view).to(device)
            while rank.dim() < 3:
                rank = rank.unsqueeze(-2)
            return rank.expand(layers, groups, -1).clone()
        # One kv head at a time, as of a cache that has no other.
        ranks = [[self.rank(head).flatten().to(device) for head in row] for row in view.heads]
        width = int(view.counts.max())
        padded = [pad(rank, (width - rank.numel(), 0)) for layer in ranks for rank in layer]
        return torch.stack(padded).view(layers, groups, width)

    def _checked_shares(self, view: CacheView, rank: Tensor) -> Tensor:
        shares = self.shares(view, rank)
        try:
            if not isinstance(shares, Tensor) or shares.is_complex():
                raise TypeError
            shares = shares.double().cpu().expand(view.grid)
        except (TypeError, RuntimeError):
            found = list(shares.shape) if isinstance(shares, Tensor) else type(shares).__name__
            raise UserError(
                f"policy {self.kind}: its shares are {found}; they must be {list(view.grid)}"
            ) from None
        if bool(shares.isnan().any()):
            _refuse_overflow(view)
        if not bool(shares.isfinite().all()) or bool((shares < 0).any()) or not bool(shares.any()):
            raise UserError(
                f"policy {self.kind}: its shares must be finite, at least 0 and not all 0"
            )
        return shares


def slot_indices(view: CacheView) -> Tensor:
    """0..n-1 as float64 [n]."""
    return torch.arange(view.slots, dtype=torch.float64)


#: Ranks from this share of the highest number on are pinned; between it and infinity they are
#: ordered among themselves.
PIN = 0.25


def pin_ends(rank: Tensor, first: int, last: int, budget: int) -> Tensor:
    """A copy of `rank` whose first `first` and last `last` slots are pinned.

    Where the budget is less than both, or a kv head gets fewer slots than these, the first ones go
    before the last, and of the last the latest stay.
    """
    rank = rank.float() if rank.dtype.itemsize < 4 else rank.clone()
    first = min(first, budget)
    last = min(last, budget - first, rank.shape[-1])
    if last:
        steps = torch.linspace(2 * PIN, 3 * PIN, last, dtype=rank.dtype, device=rank.device)
        rank[..., -last:] = steps * torch.finfo(rank.dtype).max
    rank[..., :first] = torch.inf
    return rank


def pinned(rank: Tensor) -> Tensor:
    """Which slots a ranking pins, bool of its shape."""
    return rank >= PIN * torch.finfo(rank.dtype).max


def _check_shape(kind: str, rank: Any, view: CacheView) -> None:
    (layers, groups), slots = view.grid, view.slots
    allowed = ((slots,), (layers, slots), (layers, groups, slots))
    if not isinstance(rank, Tensor) or rank.is_complex():
        found = rank.dtype if isinstance(rank, Tensor) else type(rank).__name__
        raise UserError(f"policy {kind} ranks by {found}; it must return a tensor of real numbers")
    if tuple(rank.shape) not in allowed:
        shapes = " or ".join(str(list(shape)) for shape in allowed)
        raise UserError(f"policy {kind}: its ranking is {list(rank.shape)}; it must be {shapes}")


def _refuse_nan(kind: str, rank: Tensor, view: CacheView) -> None:
    """Refuse a ranking, floating-point, that orders nothing.

    Raises:
        UserError, ModelOverflowError: as in `Policy.keep`.
    """
    if bool(rank.isnan().any()):
        _refuse_overflow(view)
        raise UserError(f"policy {kind}: its ranking holds NaN, which orders nothing")


def _refuse_overflow(view: CacheView) -> None:
    """Refuse a view of keys, values or scores that are not finite, which is why a ranking is not.

    Raises:
        ModelOverflowError: names the first layer.
    """
    found = [[head.layers[0] for head in row] for row in view.heads] or [[e] for e in view.layers]
    pairs = ((number, layer) for number, row in enumerate(found) for layer in row)
    numbers, layers = zip(*pairs, strict=True)
    first = first_overflow((layer.keys, layer.values) for layer in layers)
    scores = None if view.scores is None or not view.has_scores else view.attention("latest")
    if first is not None or (scores is not None and not scores.isfinite().all()):
        raise overflow_error(layers[0].keys.dtype, None if first is None else numbers[first])
