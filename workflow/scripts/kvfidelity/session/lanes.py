"""Several runs at once: their replies are decoded in one batch.

Each run is ordinary code in a thread of its own, and one thread runs at a time: a run goes on until
it wants a reply, then the others do, and when all want one their replies are made together, step
by step. A run whose reply has ended feeds its next prompt and joins again. Each has its own cache,
length, positions, policy and evictions; only the weights are read together.

Memory that runs out while others hold some of it says nothing about a run: it is begun anew once
they have come to their end, alone.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from queue import SimpleQueue
from typing import Any, Generic, TypeVar

import torch

from kvfidelity.session.engine import Engine
from kvfidelity.session.lane import Decoder, Lane, Reply
from kvfidelity.session.stepping import room_for, steps_of

T = TypeVar("T")


class CrowdedError(Exception):
    """Memory ran out for a run that was not alone; it is begun anew, so let this pass."""


def run_together(engine: Engine, runs: Sequence[Callable[[Engine], T]], lanes: int) -> list[T]:
    """Run each of `runs` with an engine that decodes with the others', at most `lanes` at a time.

    Returns:
        What they returned, in order.

    Raises:
        Exception: the first that a run raised, after the others have come to their end.
    """
    together: Lanes[T] = Lanes(engine, lanes)
    players: list[Player[T]] = []
    while len(players) < len(runs) or together.playing:
        while len(players) < len(runs) and not together.full:
            players.append(together.start(runs[len(players)]))
        together.advance()
    for player in players:
        if player.error is not None:
            raise player.error
    return [player.outcome for player in players]


@dataclass(eq=False)
class Player(Generic[T]):
    """One run among others: what it returned or raised, once it has come to its end."""

    run: Callable[[Engine], T]
    outcome: Any = None
    error: BaseException | None = None
    answers: SimpleQueue[Any] = field(default_factory=SimpleQueue)


class Lanes(Generic[T]):
    """Runs in the making, and the hub that their engines decode through (`session.engine.Hub`).

    Args:
        lanes: how many runs go on at a time.
        before_alone: called before a run is begun anew for want of memory: let go of what can be.
    """

    def __init__(
        self, engine: Engine, lanes: int, before_alone: Callable[[], None] = lambda: None
    ) -> None:
        self._engine = replace(engine, hub=self)
        self._places = lanes
        self._before_alone = before_alone
        self._here = threading.local()
        self._said: SimpleQueue[tuple[Player[Any], Any]] = SimpleQueue()
        self._decoders: dict[tuple[bool, int], Decoder] = {}
        self._owners: dict[int, Player[Any]] = {}
        self._waiting: list[tuple[Player[Any], Callable[[], bool]]] = []
        self._to_be_alone: deque[Player[Any]] = deque()
        self._under_way = 0
        self._alone = False

    @property
    def playing(self) -> int:
        """Runs that have begun and not come to their end."""
        return self._under_way + len(self._to_be_alone)

    @property
    def full(self) -> bool:
        """Whether no run can begin now."""
        taken = 1 if self._alone else self._places
        return self._under_way >= taken or bool(self._to_be_alone)

    def start(self, run: Callable[[Engine], T], *, alone: bool = False) -> Player[T]:
        """Begin a run; it goes on until it wants a reply or has come to its end.

        Args:
            alone: begin it once no other is under way.
        """
        player = Player(run)
        if alone:
            self._to_be_alone.append(player)
        else:
            self._begin(player)
        return player

    def advance(self) -> None:
        """Make replies until at least one has ended, and let runs go on that can."""
        if self._to_be_alone and not self._under_way:
            self._alone = True
            self._before_alone()
            self._begin(self._to_be_alone.popleft())
        for player, condition in list(self._waiting):
            if condition():
                self._waiting.remove((player, condition))
                self._goes_on(player, None)
        for lane, answer in self._decoded():
            self._goes_on(self._owners.pop(id(lane)), answer)

    def decode(self, lane: Lane) -> Reply:
        reply: Reply = self._ask(lane)
        return reply

    def until(self, condition: Callable[[], bool]) -> None:
        if not condition():
            self._ask(condition)

    def out_of_memory(self) -> None:
        if not self._alone:
            raise CrowdedError

    def _begin(self, player: Player[Any]) -> None:
        threading.Thread(target=self._perform, args=(player,), daemon=True).start()
        self._under_way += 1
        self._note_company()
        self._goes_on(player, None)

    def _decoded(self) -> list[tuple[Lane, Any]]:
        """Lanes that have ended, with their reply or what went wrong for all of them."""
        ended: list[tuple[Lane, Any]] = []
        for key, decoder in list(self._decoders.items()):
            try:
                ended += [(lane, lane.error or lane.reply) for lane in decoder.run()]
            except Exception as error:  # noqa: BLE001 - it belongs to the runs, which handle it
                ended += [(lane, error) for lane in self._decoders.pop(key).dismiss()]
        return ended

    def _goes_on(self, player: Player[Any], answer: Any) -> None:
        """Let one run go on until it wants something or has come to its end."""
        player.answers.put(answer)
        player, wish = self._said.get()
        if isinstance(wish, Lane):
            try:
                self._decoder_for(wish).join(wish)
            except Exception as error:  # noqa: BLE001 - it belongs to the run, which handles it
                self._goes_on(player, error)
                return
            self._owners[id(wish)] = player
            self._note_company()
        elif wish is not None:
            self._waiting.append((player, wish))
        else:
            self._under_way -= 1
            self._alone = self._alone and self._under_way > 0
            if isinstance(player.error, CrowdedError):
                player.error = None
                self._to_be_alone.append(player)

    def _note_company(self) -> None:
        """A reply's time is its own only if no other run went on meanwhile, decoding or not."""
        for decoder in self._decoders.values():
            decoder.beside(self._under_way)

    def _decoder_for(self, lane: Lane) -> Decoder:
        key = (lane.sampling.greedy, room_for(lane.max_new_tokens))
        if key not in self._decoders:
            steps = steps_of(self._engine, self._places, lane.sampling, lane.max_new_tokens)
            self._decoders[key] = Decoder(steps, self._places)
        return self._decoders[key]

    def _perform(self, player: Player[Any]) -> None:
        self._here.player = player
        player.answers.get()
        if self._engine.device.type == "cuda":
            torch.cuda.set_device(self._engine.device)  # which is each thread's own to say
        try:
            player.outcome = player.run(self._engine)
        except CrowdedError:
            player.error = CrowdedError()  # a fresh one: this one's frames hold the run's caches
        except BaseException as error:  # noqa: BLE001 - whoever began the run handles it
            player.error = error
        self._said.put((player, None))

    def _ask(self, wish: Any) -> Any:
        """In a run's thread: say what it wants and wait for it."""
        player: Player[Any] = self._here.player
        self._said.put((player, wish))
        answer = player.answers.get()
        if isinstance(answer, BaseException):
            raise answer
        return answer
