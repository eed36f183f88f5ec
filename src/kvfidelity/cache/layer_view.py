"""What a policy may look at of one layer, and of all of them, made when they are looked at."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import overload

from torch import Tensor

from kvfidelity.cache.scores import NotCollectedError


@dataclass(frozen=True)
class LayerView:
    """One layer's tensors: keys and values [G, n, d]; the latest queries, un-rotated [H, w, d].

    rotate: computes the rotated keys [G, n, d]; few policies use them.
    project: reads the output projection; None where a policy does not declare it.
    """

    keys: Tensor
    rotate: Callable[[], Tensor]
    values: Tensor
    queries: Tensor | None = None
    project: Callable[[], Tensor] | None = None

    @property
    def output_projection(self) -> Tensor:
        """The weights that mix the heads' outputs [H, d, hidden]: a head adds its output times its
        part to the residual stream.

        Raises:
            NotCollectedError: the policy does not declare it, or the model has none of this form.
        """
        if self.project is None:
            raise NotCollectedError(
                "no output projection: a policy declares `needs_output_projection = True`"
            )
        return self.project()

    @property
    def rotated_keys(self) -> Tensor:
        """Keys rotated by their slots' positions [G, n, d]."""
        return self.rotate()


class LayerViews(Sequence[LayerView]):
    """The layers of a view. Each is made when it is first looked at: a policy that ranks by scores
    looks at none, and an eviction of few slots would cost less than all of them.

    Args:
        make: the view of the layer with this number.
        layers: how many there are.
        groups: G, the number of kv heads.
        window: most of the latest queries that a layer shows; None: all.
        projects: whether layers show their output projections.
    """

    def __init__(
        self,
        make: Callable[[int], LayerView],
        layers: int,
        groups: int,
        *,
        window: int | None = None,
        projects: bool = True,
    ) -> None:
        self.groups = groups
        self._make, self._window, self._projects = make, window, projects
        self._made: list[LayerView | None] = [None] * layers

    @classmethod
    def of(cls, layers: Sequence[LayerView]) -> LayerViews:
        """Of layers that are there already."""
        if isinstance(layers, cls):
            return layers
        return cls(layers.__getitem__, len(layers), layers[0].keys.shape[0] if layers else 0)

    def __len__(self) -> int:
        return len(self._made)

    @overload
    def __getitem__(self, index: int) -> LayerView: ...
    @overload
    def __getitem__(self, index: slice) -> list[LayerView]: ...
    def __getitem__(self, index: int | slice) -> LayerView | list[LayerView]:
        if isinstance(index, slice):
            return [self[number] for number in range(len(self))[index]]
        number = range(len(self))[index]
        made = self._made[number]
        if made is None:
            made = self._made[number] = self._limited(self._make(number))
        return made

    def limited_to(self, window: int, *, projects: bool) -> LayerViews:
        """The same layers, which show less or as much."""
        if self.shows_at_most(window, projects=projects):
            return self
        most = window if self._window is None else min(window, self._window)
        projects = projects and self._projects
        # Of the layers as made here: a ring of queries that wraps is put together only once.
        return LayerViews(self.__getitem__, len(self), self.groups, window=most, projects=projects)

    def shows_at_most(self, window: int, *, projects: bool) -> bool:
        """Whether the layers are known to show no more than that."""
        few = self._window is not None and self._window <= window
        return few and (projects or not self._projects)

    def _limited(self, layer: LayerView) -> LayerView:
        queries, project = layer.queries, layer.project if self._projects else None
        if queries is not None and self._window is not None:
            queries = queries[:, -self._window :] if self._window else None
        return replace(layer, queries=queries, project=project)
