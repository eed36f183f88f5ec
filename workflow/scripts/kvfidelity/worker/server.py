"""The worker: loads the model, serves requests, leaves when idle.

python -m kvfidelity.worker.server SOCKET '<hello as JSON>' IDLE_SECONDS OWNER_PID
"""

from __future__ import annotations

import faulthandler
import json
import os
import signal
import socket
import sys
from pathlib import Path

from kvfidelity.worker.desk import GIVEN_UP, Desk, ended, give_up, started, teller
from kvfidelity.worker.door import Door, open_door
from kvfidelity.worker.job import Hello, carry_out, wanted
from kvfidelity.worker.protocol import Message, send
from kvfidelity.worker.watch import GRACE_S, Watch


def serve(path: Path, hello: Hello, idle_s: float, owner: int = 0) -> None:
    """Listen on `path` until nothing was asked for `idle_s` seconds, or a client says stop.

    Args:
        owner: a process that the worker does not outlive; see `place.owner`. 0 is none.
    """
    with open_door(path, idle_s, owner) as door:
        if door is None:
            return
        if hello.lanes == 1:
            _one_by_one(door, Desk(hello))
        else:
            from kvfidelity.worker.together import Together

            Together(door, hello).serve()


def _one_by_one(door: Door, desk: Desk) -> None:
    while client := door.wait():
        with client:
            try:
                if not _answer(client, desk):
                    return
            except GIVEN_UP as error:
                give_up(error)


def _answer(client: socket.socket, desk: Desk) -> bool:
    """Do what one client wants; whether the worker goes on."""
    match desk.wish(client):
        case {"do": "stop"}:
            send(client, {"event": "stopped"})
            return False
        case {"do": "serve another"}:
            send(client, {"event": "mismatch"})
            return False
        case {"do": "serve", "request": request}:
            return _serve(client, desk, request)
    return True


def _serve(client: socket.socket, desk: Desk, request: Message) -> bool:
    with Watch(client, GRACE_S) as watch:
        tell = teller(client, watch)
        tell(started())
        outcome, sound = desk.outcome(
            lambda: carry_out(desk.generator(tell), wanted(request), tell)
        )
    send(client, ended(outcome))
    return sound


if __name__ == "__main__":
    # A crash in native code leaves its stack in the log, which goes to the job that caused it;
    # SIGUSR1 makes a worker that seems to hang write down where it is.
    faulthandler.enable()
    faulthandler.register(signal.SIGUSR1)
    place, about, idle, owner = sys.argv[1:]
    serve(Path(place), Hello.of(json.loads(about)), float(idle), int(owner))
    # Taking torch apart would hold the device's memory for a second that the next worker waits.
    os._exit(0)
