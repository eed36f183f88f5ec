"""A reply in the making, and the loop that makes several at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor

from kvfidelity.cache.managed import ManagedCache
from kvfidelity.cache.triggers import Evictor
from kvfidelity.session.sampling import Sampling


@dataclass(frozen=True)
class Reply:
    """A generated reply.

    ids: its tokens without what ends the turn. nll: nats per token under the cache that generated
    it, before temperature. finish: "eos" or "length". first_s: seconds from the prompt's last
    hidden state to the first token. step_s: seconds per further token, None if there was none.
    lanes: how many runs went on at most while it was generated, its own counted; only the times of
    a reply that was alone are its own. lanes_per_s: further tokens per second of all that were
    decoded with it.
    """

    ids: tuple[int, ...]
    nll: tuple[float, ...]
    finish: str
    first_s: float
    step_s: float | None
    lanes: int = 1
    lanes_per_s: float | None = None


@dataclass
class Lane:
    """A reply in the making on one cache under one evictor.

    uniform: fp64 [max_new_tokens], what a sampled token is drawn by. token, nll: the first token.
    fed: tokens known to be in the cache. launched: steps asked of the device. room: the value of
    `launched` at which the evictor has to be asked. made_before: tokens of all lanes before it
    joined. marks: when each step was done. In the end it has a reply or an error of its own.
    """

    cache: ManagedCache
    evictor: Evictor
    sampling: Sampling
    max_new_tokens: int
    uniform: Tensor
    token: int = 0
    nll: float = 0.0
    first_s: float = 0.0
    fed: int = 0
    launched: int = 0
    room: int = 0
    lanes: int = 1
    made_before: int = 0
    began: Any = None
    marks: list[Any] = field(default_factory=list)
    reply: Reply | None = None
    error: Exception | None = None

    def look_ahead(self) -> None:
        """How far it may go before the evictor is asked again."""
        free = self.evictor.steps_without_eviction(self.cache)
        ahead = self.max_new_tokens if free is None else self.fed + free
        self.room = min(ahead, self.max_new_tokens)


class Steps(Protocol):
    """Decode steps of a batch of lanes: feed each lane's token, choose its next one.

    A lane that chose a stop token lives no longer: further steps leave its cache alone.
    """

    def seat(self, place: int, lane: Lane) -> None:
        """Let a lane take part, or go on after its cache was changed."""

    def vacate(self, place: int) -> None:
        """Let it go, also if it could not be seated."""

    def step(self) -> Any:
        """One step of all lanes; returns a mark of the time when it will be done."""

    def ended(self) -> Sequence[int]:
        """Places whose lane is known to have ended, without waiting for the latest steps."""

    def settle(self, place: int) -> tuple[int, bool]:
        """Wait, note what was fed in the lane's cache; tokens fed in all, and whether it lives."""

    def chosen(self, place: int, count: int) -> tuple[list[int], list[float]]:
        """The first `count` tokens chosen by steps, and their nats."""

    def mark(self) -> Any:
        """The present time."""

    def seconds(self, start: Any, stop: Any) -> float:
        """Between two marks whose steps are done."""


class Decoder:
    """Makes replies step by step, asking each lane's evictor when it is its time.

    The evictor's moments are those of a loop that feeds one token at a time: whether a threshold
    is reached is known from counting, so steps between need not wait for the device.
    """

    def __init__(self, steps: Steps, places: int) -> None:
        self.steps = steps
        self._lanes: dict[int, Lane] = {}
        self._free = list(range(places))[::-1]
        self._made = 0

    def join(self, lane: Lane) -> None:
        """Take in a lane whose first token is chosen, and is none that stops."""
        place = self._free.pop()
        self._lanes[place] = lane
        lane.look_ahead()
        try:
            self.steps.seat(place, lane)
        except BaseException:
            self._release(place)
            raise
        lane.began, lane.made_before = self.steps.mark(), self._made
        self.beside(len(self._lanes))

    def beside(self, runs: int) -> None:
        """Note that so many runs go on while these lanes are decoded."""
        for lane in self._lanes.values():
            lane.lanes = max(lane.lanes, runs)

    def dismiss(self) -> list[Lane]:
        """Let all lanes go as they are; those that were there."""
        lanes = list(self._lanes.values())
        for place in list(self._lanes):
            self._release(place)
        return lanes

    @torch.inference_mode()
    def run(self) -> list[Lane]:
        """Step until at least one lane has ended; those that have."""
        done: list[Lane] = []
        while self._lanes and not done:
            mark = self.steps.step()
            self._made += len(self._lanes)
            for lane in self._lanes.values():
                lane.launched += 1
                lane.marks.append(mark)
            ended = set(self.steps.ended())
            for place, lane in list(self._lanes.items()):
                if place not in ended and lane.launched < lane.room:
                    continue
                try:
                    if self._ends(place, lane):
                        self._finish(place, lane)
                        done.append(lane)
                except Exception as error:  # noqa: BLE001 - its policy's, say: none of the others'
                    lane.error = error
                    self._release(place)
                    done.append(lane)
        return done

    def _ends(self, place: int, lane: Lane) -> bool:
        fed, lives = self.steps.settle(place)
        lane.evictor.step += fed - lane.fed
        lane.fed = fed
        if fed < lane.launched or fed == lane.max_new_tokens:
            return True
        if lane.launched == lane.room:
            before = lane.cache.ledger.evictions
            lane.evictor.before_step(lane.cache)
            lane.look_ahead()
            if lives and lane.cache.ledger.evictions != before:
                self.steps.seat(place, lane)
        return not lives

    def _finish(self, place: int, lane: Lane) -> None:
        ids, nll = self.steps.chosen(place, lane.fed - 1)
        step_s = self.steps.seconds(lane.began, lane.marks[lane.fed - 1]) / lane.fed
        lanes = (self._made - lane.made_before) / lane.launched
        lane.reply = Reply(
            ids=(lane.token, *ids),
            nll=(lane.nll, *nll),
            finish="length" if lane.fed == lane.max_new_tokens else "eos",
            first_s=lane.first_s,
            step_s=step_s,
            lanes=lane.lanes,
            lanes_per_s=lanes / step_s if step_s else None,
        )
        self._release(place)

    def _release(self, place: int) -> None:
        self.steps.vacate(place)
        del self._lanes[place]
        self._free.append(place)
