"""A worker whose requests' replies are decoded together, in so many lanes (`session.lanes`)."""

from __future__ import annotations

import socket
from functools import partial

from kvfidelity.session.engine import Engine
from kvfidelity.session.lanes import CrowdedError, Lanes
from kvfidelity.worker.desk import GIVEN_UP, Desk, ended, give_up, started, teller
from kvfidelity.worker.door import Door
from kvfidelity.worker.job import Hello, carry_out, wanted
from kvfidelity.worker.protocol import Message, send
from kvfidelity.worker.watch import Watch


class Together:
    """Takes clients in as they come while there are lanes free, and lets their runs go on.

    Those that want a worker for something else wait until nobody else is at the door while a lane
    is free, and those within are served: then this one leaves, and they start their own.
    """

    def __init__(self, door: Door, hello: Hello) -> None:
        self._door = door
        self._desk = Desk(hello, passing=(CrowdedError,))
        self._places = hello.lanes
        self._lanes: Lanes[None] | None = None
        self._watches: set[Watch] = set()
        self._waiting: list[socket.socket] = []
        self._leaves = False

    def serve(self) -> None:
        """Serve until nobody has come for long, or a client says stop."""
        while not (self._leaves and not self._playing):
            if self._all_gone():
                return
            if not self._leaves and not (self._lanes and self._lanes.full):
                waits = not (self._playing or self._waiting)
                client = self._door.wait() if waits else self._door.look()
                if client is None and self._waiting:
                    self._leaves = True
                    continue
                if client is None and not self._playing:
                    return
                if client is not None:
                    if not self._take_in(client):
                        return
                    continue  # others may be there: the more decode from the start, the better
            if self._lanes is not None:
                self._lanes.advance()

    @property
    def _playing(self) -> int:
        return self._lanes.playing if self._lanes else 0

    def _all_gone(self) -> bool:
        """Whether nobody waits any more for what is computed here."""
        gone = [watch for watch in self._watches if watch.gone]
        return bool(gone) and len(gone) == self._playing

    def _take_in(self, client: socket.socket) -> bool:
        """Begin what one client wants; False if that is to leave at once."""
        try:
            match self._desk.wish(client):
                case {"do": "stop"}:
                    send(client, {"event": "stopped"})
                    return False
                case {"do": "serve another"}:
                    self._waiting.append(client)
                    return True
                case {"do": "serve", "request": request, **more}:
                    lanes = self._ready(client)
                    if lanes is not None:
                        lanes.start(
                            partial(self._serve, client, request), alone=bool(more.get("alone"))
                        )
                        return True
        except GIVEN_UP as error:
            give_up(error)
        client.close()
        return True

    def _ready(self, client: socket.socket) -> Lanes[None] | None:
        """The lanes, once the model is loaded; None if it cannot be, and the client was told."""
        if self._lanes is None:
            with Watch(client, None) as watch:
                tell = teller(client, watch)
                tell(started())
                outcome, sound = self._desk.outcome(lambda: self._desk.generator(tell))
            if outcome["event"] == "error":
                self._leaves = not sound
                send(client, ended(outcome))
                return None
            generator = self._desk.generator(tell)
            self._lanes = Lanes(generator.engine, self._places, generator.forget)
        return self._lanes

    def _serve(self, client: socket.socket, request: Message, engine: Engine) -> None:
        """One client's run, in a thread of its own, one of which goes on at a time."""
        try:
            with Watch(client, None) as watch:
                self._watches.add(watch)
                try:
                    tell = teller(client, watch)
                    tell(started())
                    outcome, sound = self._desk.outcome(
                        lambda: carry_out(self._desk.generator(tell), wanted(request), tell, engine)
                    )
                except CrowdedError:
                    tell({"event": "alone"})
                    raise
                finally:
                    self._watches.discard(watch)
            self._leaves |= not sound
            send(client, ended(outcome))
        except GIVEN_UP as error:
            give_up(error)
        client.close()
