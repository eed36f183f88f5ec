"""The worker: loads the model, serves one request at a time, leaves when idle.

python -m kvfidelity.worker.server SOCKET '<hello as JSON>' IDLE_SECONDS
"""

from __future__ import annotations

import dataclasses
import json
import os
import socket
import struct
import sys
import traceback
from pathlib import Path
from typing import Any

from kvfidelity.errors import UserError
from kvfidelity.worker.job import Generator, Hello, Request
from kvfidelity.worker.protocol import messages, send


class DroppedError(Exception):
    """The client is gone: what it asked for is given up."""


def serve(path: Path, hello: Hello, idle_s: float) -> None:
    """Listen on `path` until nothing was asked for `idle_s` seconds, or a client says stop."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        path.unlink(missing_ok=True)
        listener.bind(str(path))
        path.chmod(0o600)
        listener.listen(64)
        mine = path.stat().st_ino
        generator: Generator | None = None
        try:
            while True:
                listener.settimeout(idle_s)
                try:
                    connection, _ = listener.accept()
                except TimeoutError:
                    return
                with connection:
                    if not _same_user(connection):
                        continue
                    connection.settimeout(None)
                    try:
                        generator, go_on = _converse(connection, hello, generator)
                    except (OSError, DroppedError):
                        continue  # a client that was killed; the next one is served
                    if not go_on:
                        return
        finally:
            # Another worker may have taken the place meanwhile; its socket stays.
            if path.exists() and path.stat().st_ino == mine:
                path.unlink(missing_ok=True)


def _converse(
    connection: socket.socket, hello: Hello, generator: Generator | None
) -> tuple[Generator | None, bool]:
    for message in messages(connection):
        if message["do"] == "stop":
            send(connection, {"event": "stopped"})
            return generator, False
        if message["hello"] != dataclasses.asdict(hello):
            send(connection, {"event": "mismatch"})
            return generator, False
        try:
            if generator is None:
                send(connection, {"event": "loading", "model": hello.model_dir, "pid": os.getpid()})
                generator = Generator(hello)
            generator.serve(Request(**message["request"]), lambda event: _tell(connection, event))
            send(connection, {"event": "done"})
        except UserError as error:
            send(connection, {"event": "error", "message": str(error), "user": True})
        except DroppedError:
            raise
        except Exception:  # noqa: BLE001 - whatever happens belongs in the job's log
            send(connection, {"event": "error", "message": traceback.format_exc(), "user": False})
    return generator, True


def _tell(connection: socket.socket, event: dict[str, Any]) -> None:
    try:
        send(connection, event)
    except OSError:
        raise DroppedError from None


def _same_user(connection: socket.socket) -> bool:
    size = struct.calcsize("3i")
    peer = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, size)
    _pid, uid, _gid = struct.unpack("3i", peer)
    return bool(uid == os.getuid())


if __name__ == "__main__":
    place, about, idle = sys.argv[1:]
    serve(Path(place), Hello.of(json.loads(about)), float(idle))
