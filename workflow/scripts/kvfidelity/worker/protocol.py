"""Messages: one JSON object a line, both ways."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from typing import Any

Message = dict[str, Any]


def send(connection: socket.socket, message: Message) -> None:
    """Send one message.

    Raises:
        OSError: the other end is gone.
    """
    connection.sendall(json.dumps(message).encode() + b"\n")


def messages(connection: socket.socket) -> Iterator[Message]:
    """Messages until the other end closes; half a line at the end is dropped."""
    with connection.makefile("rb") as stream:
        for line in stream:
            if not line.endswith(b"\n"):
                return
            yield json.loads(line)
