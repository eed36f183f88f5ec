"""Decode steps on a GPU: one CUDA graph, whatever the caches' lengths, positions and addresses.

A step feeds each lane's token, chooses the next one and notes it, all on the device. The host
launches steps and looks only now and then which lanes have ended; a lane that has is passed by,
so a late look costs time and changes nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from types import FunctionType
from typing import Any

import torch
from torch import Tensor

from kvfidelity.cache.gpu.table import StepTable
from kvfidelity.cache.managed import ManagedCache
from kvfidelity.metrics.quality import token_nll
from kvfidelity.session.engine import Engine
from kvfidelity.session.lane import Lane
from kvfidelity.session.sampling import choose

# Steps between two looks at which lanes have ended. A look sees the state of the look before, so
# that the device always has work queued; after its end a reply costs up to twice as many steps.
LOOK_EVERY = 4


class CapturedSteps:
    """See `session.lane.Steps`.

    Args:
        lanes: how many replies can be made at once.
        sampled: whether tokens may be drawn; the graph of greedy ones has no sorting in it.
        most: tokens that a reply has at most.
        compiled: compile the decoder layers for the step (once for all layers, some ten seconds),
            which fuses what lies between matrix products and attention.
    """

    def __init__(
        self, engine: Engine, lanes: int, *, sampled: bool, most: int, compiled: bool = True
    ) -> None:
        self._engine = engine
        self._lanes: dict[int, Lane] = {}
        self._rings: dict[int, Tensor] = {}
        self._sampled = sampled
        device = engine.device
        decoder = engine.model.get_decoder()
        rotary = decoder.rotary_emb
        half = rotary.table(1, device)[0].shape[1]
        self._table = StepTable(len(decoder.layers), lanes, half, device)
        self._token = torch.zeros(lanes, 1, dtype=torch.int64, device=device)
        self._fed = torch.zeros(lanes, dtype=torch.int64, device=device)
        self._ids = torch.zeros(lanes, most + 1, dtype=torch.int64, device=device)
        self._nll = torch.zeros(lanes, most + 1, dtype=torch.float32, device=device)
        self._uniform = torch.zeros(lanes, most + 2, dtype=torch.float64, device=device)
        self._heat = torch.zeros(2, lanes, dtype=torch.float64, device=device)
        self._stops = torch.tensor(sorted(engine.segmenter.stop_ids), device=device)
        self._seen = torch.zeros(lanes, dtype=torch.int64, pin_memory=True)
        self._looked: torch.cuda.Event | None = None
        self._launched = 0
        self._graph = self._capture(decoder, compiled)

    def seat(self, place: int, lane: Lane) -> None:
        joins = place not in self._lanes
        cache, room = lane.cache, lane.max_new_tokens - lane.fed
        cache.reserve(cache.size + room)
        if joins:
            self._lanes[place] = lane
            self._token[place] = lane.token
            self._fed[place] = 0
            self._heat[:, place] = torch.tensor(
                [lane.sampling.temperature, lane.sampling.top_p], dtype=torch.float64
            )
            self._uniform[place, : lane.max_new_tokens] = lane.uniform.to(self._uniform.device)
            if cache.query_tail:
                self._rings[place] = _ring(cache)
        self._table.seat(place, cache, self._rings.get(place), alive=True, room=room)
        self._looked = None  # what the look under way will see is of another lane

    def vacate(self, place: int) -> None:
        self._table.clear(place)
        self._rings.pop(place, None)
        self._lanes.pop(place, None)

    def step(self) -> torch.cuda.Event:
        self._graph.replay()
        self._launched += 1
        return self.mark()

    def ended(self) -> Sequence[int]:
        if self._launched % LOOK_EVERY:
            return []
        found: list[int] = []
        if self._looked is not None:
            self._looked.synchronize()
            found = [place for place in self._lanes if not self._seen[place]]
        self._seen.copy_(self._table.lanes[:, 2], non_blocking=True)
        self._looked = self.mark()
        return found

    def settle(self, place: int) -> tuple[int, bool]:
        fed, lives = torch.stack([self._fed[place], self._table.lanes[place, 2]]).tolist()
        lane = self._lanes[place]
        if fed > lane.fed:
            lane.cache.grown_in_place(fed - lane.fed)
            if place in self._rings:
                _unroll(lane.cache, self._rings[place], fed - lane.fed)
        return fed, bool(lives)

    def chosen(self, place: int, count: int) -> tuple[list[int], list[float]]:
        return self._ids[place, :count].tolist(), self._nll[place, :count].tolist()

    def mark(self) -> torch.cuda.Event:
        event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        event.record()
        return event

    def seconds(self, start: torch.cuda.Event, stop: torch.cuda.Event) -> float:
        stop.synchronize()
        milliseconds: float = start.elapsed_time(stop)
        return milliseconds / 1000

    def _step(self) -> None:
        """What is captured."""
        hidden = self._engine.forward(self._token, self._table)
        logits = self._engine.logits(hidden[:, 0])
        if self._sampled:
            uniform = self._uniform.gather(1, self._fed[:, None] + 1)[:, 0]
            token = choose(logits, self._heat[0], self._heat[1], uniform)
        else:
            token = logits.argmax(-1)
        self._ids.scatter_(1, self._fed[:, None], token[:, None])
        self._nll.scatter_(1, self._fed[:, None], token_nll(logits, token)[:, None])
        self._table.advance()
        alive = self._table.lanes[:, 2]
        self._fed += alive
        alive *= (token[:, None] != self._stops).all(1)
        self._token.copy_(token[:, None])

    @torch.inference_mode()
    def _capture(self, decoder: Any, compiled: bool) -> torch.cuda.CUDAGraph:
        for layer, rows in zip(decoder.layers, self._table.rows, strict=True):
            layer.self_attn.step_rows = rows
        graph = torch.cuda.CUDAGraph()
        side = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        side.wait_stream(torch.cuda.current_stream())
        with _compiled(decoder.layers) if compiled else _as_they_are():
            with torch.cuda.stream(side):
                for _ in range(2):  # nobody lives yet: this only compiles and allocates
                    self._step()
            torch.cuda.current_stream().wait_stream(side)
            with torch.cuda.graph(graph, capture_error_mode="thread_local"):
                self._step()
        return graph


@contextmanager
def _as_they_are() -> Iterator[None]:
    yield


@contextmanager
def _compiled(layers: Any) -> Iterator[None]:
    """While this lasts calls of the layers are compiled; one compilation serves all of them."""
    # PyTorch counts compilations per code object and stops at eight: each capture has its own.
    fresh = FunctionType(_forward.__code__.replace(), globals())
    # With one lane, matrix products that read weights at the memory's full speed; and what goes
    # into one is computed before it, not once more for each of its rows.
    options: dict[str, Any] = {"coordinate_descent_tuning": True, "realize_opcount_threshold": 4}
    call = torch.compile(fresh, fullgraph=True, dynamic=False, options=options)
    for layer in layers:
        layer.forward = partial(call, layer)
    try:
        yield
    finally:
        for layer in layers:
            del layer.forward


def _forward(layer: Any, *args: Any, **kwargs: Any) -> Any:
    return type(layer).forward(layer, *args, **kwargs)


def _ring(cache: ManagedCache) -> Tensor:
    """The latest queries [L, H, w, d], the one of token t in place t % w."""
    tails = torch.stack([tail for tail in cache.tails if tail is not None])
    layers, heads, count, size = tails.shape
    ring = tails.new_zeros(layers, heads, cache.query_tail, size)
    first = cache.ledger.tokens_seen - count
    places = torch.arange(first, first + count, device=tails.device) % cache.query_tail
    ring[:, :, places] = tails
    return ring


def _unroll(cache: ManagedCache, ring: Tensor, more: int) -> None:
    """Put the ring's queries back into the cache's tails, oldest first."""
    first = cache.tails[0]
    count = min(ring.shape[2], more + (0 if first is None else first.shape[1]))
    seen = cache.ledger.tokens_seen
    places = torch.arange(seen - count, seen, device=ring.device) % ring.shape[2]
    cache.tails = list(ring[:, :, places].unbind(0))
