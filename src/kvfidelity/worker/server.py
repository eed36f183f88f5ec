"""The worker's process: loads the model, serves requests, exits when idle.

python -m kvfidelity.worker.server SOCKET '<WorkerConfig as JSON>' IDLE_SECONDS OWNER_PID
"""

from __future__ import annotations

import faulthandler
import json
import os
import signal
import socket
import sys
from pathlib import Path

from kvfidelity.worker.generator import execute
from kvfidelity.worker.job import Job, WorkerConfig, job_from
from kvfidelity.worker.listener import Listener, listen
from kvfidelity.worker.liveness import GRACE_S, Liveness
from kvfidelity.worker.protocol import send
from kvfidelity.worker.requests import (
    CLIENT_ERRORS,
    RequestHandler,
    event_sender,
    final_event,
    kept_for_good,
    log_dropped_client,
    started_event,
)
from kvfidelity.worker.serving import note_serving


def serve(path: Path, config: WorkerConfig, idle_s: float, owner: int = 0) -> None:
    """Serve requests on `path` until the worker must exit; see `kvfidelity.worker`.

    Args:
        idle_s: seconds to wait for the next client.
        owner: a process id; the worker exits when it ends (`socket_path.owner_pid`). 0: no owner.
    """
    with listen(path, idle_s, owner) as listener:
        if listener is None:
            return
        if config.batch_size == 1:
            _serve_one_by_one(listener, RequestHandler(config))
        else:
            with kept_for_good():
                from kvfidelity.worker.batch_server import BatchServer

            server: BatchServer | None = BatchServer(listener, config)
            while server is not None:
                note_serving(path, server.config)
                server.serve()
                server = server.follower()


def _serve_one_by_one(listener: Listener, handler: RequestHandler) -> None:
    while client := listener.wait():
        with client:
            try:
                if not _handle(client, handler):
                    return
            except CLIENT_ERRORS as error:
                log_dropped_client(error)


def _handle(client: socket.socket, handler: RequestHandler) -> bool:
    """Serve one client; False if the worker must exit."""
    match handler.receive(client):
        case {"do": "stop"}:
            send(client, {"event": "stopped"})
            return False
        case {"do": "mismatch"}:
            send(client, {"event": "mismatch"})
            return False
        case {"do": "serve", "job": job}:
            return _serve(client, handler, job_from(job))
    return True


def _serve(client: socket.socket, handler: RequestHandler, job: Job) -> bool:
    with Liveness(client, GRACE_S) as liveness:
        send_event = event_sender(client, liveness)
        send_event(started_event())
        outcome, healthy = handler.run(
            lambda: execute(handler.generator(send_event), job, send_event)
        )
    send(client, final_event(outcome))
    return healthy


if __name__ == "__main__":
    # A crash in native code writes its stack to the log, which the client forwards to its job.
    # SIGUSR1 makes a worker that seems to hang write its stack.
    faulthandler.enable()
    faulthandler.register(signal.SIGUSR1)
    socket_path, config, idle, owner = sys.argv[1:]
    serve(Path(socket_path), WorkerConfig.of(json.loads(config)), float(idle), int(owner))
    # A normal exit takes torch a second, in which the next worker waits for the device's memory.
    os._exit(0)
