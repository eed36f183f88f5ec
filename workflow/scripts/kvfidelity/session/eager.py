"""Decode steps run as they come: on a CPU, and the reference of captured ones."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from kvfidelity.cache.lanes import LaneCache
from kvfidelity.metrics.quality import token_nll
from kvfidelity.session.engine import Engine
from kvfidelity.session.lane import Lane
from kvfidelity.session.sampling import choose


@dataclass
class _Seat:
    lane: Lane
    token: int
    lives: bool = True
    fed: int = 0
    ids: list[int] = field(default_factory=list)
    nll: list[float] = field(default_factory=list)


class EagerSteps:
    """See `session.lane.Steps`."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._seats: dict[int, _Seat] = {}

    def seat(self, place: int, lane: Lane) -> None:
        if place not in self._seats:
            self._seats[place] = _Seat(lane, lane.token)

    def vacate(self, place: int) -> None:
        self._seats.pop(place, None)

    def step(self) -> float:
        seats = [seat for seat in self._seats.values() if seat.lives]
        engine, device = self._engine, self._engine.device
        tokens = torch.tensor([[seat.token] for seat in seats], device=device)
        hidden = engine.forward(tokens, LaneCache([seat.lane.cache for seat in seats]))
        logits = engine.logits(hidden[:, -1])
        settings = torch.tensor(
            [
                (
                    seat.lane.sampling.temperature,
                    seat.lane.sampling.top_p,
                    seat.lane.uniform[min(seat.fed + 1, seat.lane.max_new_tokens - 1)],
                )
                for seat in seats
            ],
            dtype=torch.float64,
            device=device,
        )
        greedy = all(seat.lane.sampling.greedy for seat in seats)
        chosen = logits.argmax(-1) if greedy else choose(logits, *settings.unbind(1))
        nll = token_nll(logits, chosen).tolist()
        for seat, token, nats in zip(seats, chosen.tolist(), nll, strict=True):
            seat.fed += 1
            seat.token = token
            seat.lives = token not in engine.segmenter.stop_ids
            seat.ids.append(token)
            seat.nll.append(nats)
        return self.mark()

    def ended(self) -> Sequence[int]:
        return [place for place, seat in self._seats.items() if not seat.lives]

    def settle(self, place: int) -> tuple[int, bool]:
        return self._seats[place].fed, self._seats[place].lives

    def chosen(self, place: int, count: int) -> tuple[list[int], list[float]]:
        seat = self._seats[place]
        return seat.ids[:count], seat.nll[:count]

    def mark(self) -> float:
        return time.perf_counter()

    def seconds(self, start: float, stop: float) -> float:
        return stop - start
