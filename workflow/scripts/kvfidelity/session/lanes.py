"""Several runs at once: their replies are decoded in one batch.

Each run is ordinary code in a thread of its own, and one thread runs at a time: a run goes on until
it wants a reply, then the others do, and when all want one their replies are made together, step
by step. A run whose reply has ended feeds its next prompt and joins again. Each has its own cache,
length, positions, policy and evictions; only the weights are read together.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from queue import SimpleQueue
from typing import Any, Generic, TypeVar

from kvfidelity.session.engine import Engine
from kvfidelity.session.lane import Decoder, Lane, Reply
from kvfidelity.session.stepping import room_for, steps_of

T = TypeVar("T")


def run_together(engine: Engine, runs: Sequence[Callable[[Engine], T]], lanes: int) -> list[T]:
    """Run each of `runs` with an engine that decodes with the others', at most `lanes` at a time.

    Returns:
        What they returned, in order.

    Raises:
        Exception: the first that a run raised, after the others have come to their end.
    """
    players = [_Player(run) for run in runs]
    _Together(engine, lanes).play(players)
    for player in players:
        if player.error is not None:
            raise player.error
    return [player.outcome for player in players]


@dataclass(eq=False)
class _Player(Generic[T]):
    run: Callable[[Engine], T]
    answers: SimpleQueue[Any] = field(default_factory=SimpleQueue)
    outcome: Any = None
    error: BaseException | None = None


class _Together:
    """The hub that the runs' engines decode through (`session.engine.Hub`)."""

    def __init__(self, engine: Engine, lanes: int) -> None:
        self._engine = replace(engine, hub=self)
        self._places = lanes
        self._here = threading.local()
        self._said: SimpleQueue[tuple[_Player[Any], Any]] = SimpleQueue()
        self._decoders: dict[tuple[bool, int], Decoder] = {}
        self._owners: dict[int, _Player[Any]] = {}
        self._waiting: list[tuple[_Player[Any], Callable[[], bool]]] = []

    def decode(self, lane: Lane) -> Reply:
        reply: Reply = self._ask(lane)
        return reply

    def until(self, condition: Callable[[], bool]) -> None:
        if not condition():
            self._ask(condition)

    def play(self, players: Sequence[_Player[Any]]) -> None:
        to_come = deque(players)
        playing = 0
        while to_come or playing:
            while to_come and playing < self._places:
                player = to_come.popleft()
                threading.Thread(target=self._perform, args=(player,), daemon=True).start()
                playing += self._goes_on(player, None)
            for player, condition in list(self._waiting):
                if condition():
                    self._waiting.remove((player, condition))
                    playing -= not self._goes_on(player, None)
            for lane, answer in self._decoded():
                playing -= not self._goes_on(self._owners.pop(id(lane)), answer)

    def _decoded(self) -> list[tuple[Lane, Any]]:
        """Lanes that have ended, with their reply or what went wrong for all of them."""
        ended: list[tuple[Lane, Any]] = []
        for key, decoder in list(self._decoders.items()):
            try:
                ended += [(lane, lane.reply) for lane in decoder.run()]
            except Exception as error:  # noqa: BLE001 - it belongs to the runs, which handle it
                ended += [(lane, error) for lane in self._decoders.pop(key).dismiss()]
        return ended

    def _goes_on(self, player: _Player[Any], answer: Any) -> bool:
        """Let one run go on until it wants something; False if it has come to its end."""
        player.answers.put(answer)
        player, wish = self._said.get()
        if isinstance(wish, Lane):
            try:
                self._decoder_for(wish).join(wish)
            except Exception as error:  # noqa: BLE001 - it belongs to the run, which handles it
                return self._goes_on(player, error)
            self._owners[id(wish)] = player
        elif wish is not None:
            self._waiting.append((player, wish))
        return wish is not None

    def _decoder_for(self, lane: Lane) -> Decoder:
        key = (lane.sampling.greedy, room_for(lane.max_new_tokens))
        if key not in self._decoders:
            steps = steps_of(self._engine, self._places, lane.sampling, lane.max_new_tokens)
            self._decoders[key] = Decoder(steps, self._places)
        return self._decoders[key]

    def _perform(self, player: _Player[Any]) -> None:
        self._here.player = player
        player.answers.get()
        try:
            player.outcome = player.run(self._engine)
        except BaseException as error:  # noqa: BLE001 - raised by run_together
            player.error = error
        self._said.put((player, None))

    def _ask(self, wish: Any) -> Any:
        """In a run's thread: say what it wants and wait for it."""
        player: _Player[Any] = self._here.player
        self._said.put((player, wish))
        answer = player.answers.get()
        if isinstance(answer, BaseException):
            raise answer
        return answer
