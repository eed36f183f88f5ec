"""What `sitecustomize` does in a process that loads a model."""

from __future__ import annotations

import json
import os
import signal
import socket
import struct
import sys
from pathlib import Path

from command_line import show


def ask() -> None:
    """Be the place holder of a forked process; returns where there is no server."""
    with socket.socket(socket.AF_UNIX) as connection:
        try:
            connection.connect(os.environ["FORK_SERVER"])
        except OSError:
            return
        asked = {
            "command": sys.orig_argv,
            "cwd": str(Path.cwd()),
            "environ": dict(os.environ),
            "path": sys.path,
        }
        text = json.dumps(asked).encode()
        socket.send_fds(connection, [struct.pack("i", len(text))], [0, 1, 2])
        connection.sendall(text)
        show([])
        os.chdir("/")
        status = connection.recv(4)
    code = struct.unpack("i", status)[0] if status else 1
    if code < 0:
        os.kill(os.getpid(), -code)
        signal.pause()
    os._exit(code)
