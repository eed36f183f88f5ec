"""Messages between client and worker: one JSON object per line, both ways."""

from __future__ import annotations

import json
import socket
import struct
import time
from collections.abc import Iterator
from typing import Any, NamedTuple

from kvfidelity.bounded_json import parse_json

Message = dict[str, Any]
#: Bytes of one message; a job's specification has some kilobytes.
MAX_MESSAGE_BYTES = 4 << 20


class Peer(NamedTuple):
    """The process at the other end, as the kernel knows it."""

    pid: int
    uid: int
    gid: int


def send(connection: socket.socket, message: Message) -> None:
    """Send one message.

    Raises:
        OSError: the other end is gone, or does not read.
    """
    connection.sendall(json.dumps(message).encode() + b"\n")


def messages(connection: socket.socket) -> Iterator[Message]:
    """Messages until the other end closes or dies; an incomplete last line is dropped.

    Raises:
        ValueError: a line is not a JSON object.
        TimeoutError: nothing was received within the connection's time-out.
    """
    with connection.makefile("rb") as stream:
        while line := _line(stream):
            message = parse_json(line)
            if not isinstance(message, dict):
                raise ValueError(f"not a JSON object: {message!r}")
            yield message


def first_message(connection: socket.socket, seconds: float) -> Message:
    """The first message of another process; {} if it closes without one.

    Unlike `messages`, which trusts the other end to send at its own pace, this is over after
    `seconds` even if a byte comes now and then.

    Raises:
        TimeoutError: the message is not complete after `seconds`.
        ValueError: it is no JSON object, too deep, or longer than MAX_MESSAGE_BYTES.
        OSError: the connection broke.
    """
    deadline = time.monotonic() + seconds
    received = bytearray()
    while True:
        left = deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError(f"no whole message within {seconds:.0f} s")
        connection.settimeout(left)
        try:
            data = connection.recv(1 << 16)
        except TimeoutError:
            continue
        if not data:
            return {}
        end = data.find(b"\n")
        received += data if end < 0 else data[:end]
        if len(received) > MAX_MESSAGE_BYTES:
            raise ValueError(f"a message is longer than {MAX_MESSAGE_BYTES >> 20} MiB")
        if end >= 0:
            break
    message = parse_json(received)
    if not isinstance(message, dict):
        raise ValueError("a message is not a JSON object")
    return message


def peer(connection: socket.socket) -> Peer:
    """The process at the other end of a Unix socket (Linux: SO_PEERCRED)."""
    layout = struct.Struct("3i")
    found = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, layout.size)
    return Peer(*layout.unpack(found))


def _line(stream: Any) -> bytes:
    try:
        line: bytes = stream.readline()
    except ConnectionError:
        return b""
    return line if line.endswith(b"\n") else b""
