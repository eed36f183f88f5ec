"""The fork server: python server.py SOCKET LISTENER ROOM, the file number of a listening socket."""

from __future__ import annotations

import contextlib
import json
import os
import runpy
import select
import shutil
import signal
import socket
import struct
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from command_line import show

Run = Callable[[], object]


def main() -> Run:
    """Serve; returns in each process that was asked for, with what it has to do."""
    path, number = Path(sys.argv[1]), int(sys.argv[2])
    with socket.socket(fileno=number) as listener:
        _import()
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)
        os.chdir("/")
        while listener in select.select([listener, sys.stdin], [], [])[0]:
            connection = listener.accept()[0]
            if os.fork() == 0:
                listener.close()
                return _watch(connection)
            connection.close()
    shutil.rmtree(path.parent)
    os._exit(0)


def _import() -> None:
    """What each process imports that is not this project's."""
    import transformers
    import transformers.models.llama.modeling_llama

    assert transformers.AutoModelForCausalLM and transformers.AutoTokenizer


def _watch(connection: socket.socket) -> Run:
    """Fork again, and end as that process ends; returns in that process.

    It is killed if the one that asked is killed.
    """
    size, streams, *_ = socket.recv_fds(connection, 4, 3)
    with connection.makefile("rb") as sent:
        asked = json.loads(sent.read(*struct.unpack("i", size)))
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    process = os.fork()
    if process == 0:
        connection.close()
        return _become(asked, streams)
    for stream in streams:
        os.close(stream)
    ended = os.pidfd_open(process)
    if ended not in select.select([connection, ended], [], [])[0]:
        os.kill(process, signal.SIGKILL)
    status = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
    with contextlib.suppress(OSError):
        connection.sendall(struct.pack("i", status))
    os._exit(0)


def _become(asked: dict[str, Any], streams: list[int]) -> Run:
    """Take over what the process has that asked; returns what it would run."""
    os.setsid()
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
        os.close(stream)
    os.chdir(asked["cwd"])
    os.environ.clear()
    os.environ.update(asked["environ"])
    command: list[str] = asked["command"]
    show(command)
    sys.orig_argv = command
    _, *arguments = command
    if arguments[0] == "-m":
        _, *sys.argv = arguments
        sys.path[:] = [asked["cwd"], *asked["path"]]
        return lambda: runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
    sys.argv = arguments
    sys.path[:] = [str(Path(arguments[0]).parent.resolve()), *asked["path"]]
    return lambda: runpy.run_path(sys.argv[0], run_name="__main__")


if __name__ == "__main__":
    main()()
