"""Verdicts a second with many requests in flight, against a slow local server.

    python benchmarks/judge.py

The server is a separate process and answers every request after the same delay. With n requests
in flight and a delay of d seconds at most n / d verdicts a second are possible.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import resource
import tempfile
import time
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from kvfidelity.judges.dispatch import build_client
from kvfidelity.judges.kinds.openai import with_defaults
from kvfidelity.judges.llm import LLMJudge
from kvfidelity.judges.rubric import Rubric

ROOT = Path(__file__).parents[1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--verdicts", type=int, default=1920)
    parser.add_argument("--concurrency", type=int, default=64)
    parser.add_argument("--delay", type=float, default=0.5, help="seconds")
    options = parser.parse_args()
    here, there = multiprocessing.Pipe()
    server = multiprocessing.Process(target=serve, args=(there, options.delay), daemon=True)
    server.start()
    url = f"http://127.0.0.1:{here.recv()}/v1"
    rows = [row(number) for number in range(options.verdicts)]
    price = {"input": 2.5, "output": 10.0}
    for name, pace in (
        ("plain", {}),
        ("caps", {"max_usd": 1000.0, "tokens_per_minute": 10**9, "price": price}),
    ):
        with tempfile.TemporaryDirectory() as store:
            pace = {"concurrency": options.concurrency} | pace
            seconds, processor = timed(url, Path(store), pace, rows)
        speed, ideal = len(rows) / seconds, options.concurrency / options.delay
        print(
            f"{name}: {len(rows)} verdicts in {seconds:.1f} s, {speed:.0f}/s, "
            f"{speed / ideal:.0%} of {ideal:.0f}/s; {processor:.1f} s of processor time",
            flush=True,
        )
    server.kill()


def timed(url: str, store: Path, pace: dict[str, Any], rows: list[Any]) -> tuple[float, float]:
    """Wall and processor seconds for all verdicts."""
    entry = {"model": "local", "base_url": url, "api_key_env": None}
    rubric = Rubric.read(ROOT / "resources/rubrics/blind.md")
    judge = LLMJudge(
        "remote", with_defaults(entry), rubric, build_client("remote", entry, pace, store)
    )
    began, used = time.perf_counter(), resource.getrusage(resource.RUSAGE_SELF)
    verdicts = judge.judge(rows)
    seconds, now = time.perf_counter() - began, resource.getrusage(resource.RUSAGE_SELF)
    assert all(verdict.status == "ok" for verdict in verdicts)
    return seconds, now.ru_utime + now.ru_stime - used.ru_utime - used.ru_stime


def row(number: int) -> dict[str, Any]:
    text = f"The ferry number {number} leaves at nine in the morning from the northern pier. " * 4
    about = {"turn": number, "prompt": f"When does ferry {number} leave?", "reply": text}
    return about | {"reference": None, "fed_reply": text, "finish_reason": "eos"}


def serve(connection: Connection, delay: float) -> None:
    """Answer chat completions after `delay` seconds; sends its port first."""
    message = {"role": "assistant", "content": json.dumps({"reason": "fine", "score": 7})}
    choices = [{"index": 0, "message": message, "finish_reason": "stop"}]
    usage = {"prompt_tokens": 400, "completion_tokens": 20, "total_tokens": 420}
    about = {"id": "x", "object": "chat.completion", "created": 0, "model": "local"}
    body = json.dumps(about | {"choices": choices, "usage": usage}).encode()
    head = (
        f"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    answer = head.encode() + body

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while request := await reader.readuntil(b"\r\n\r\n"):
                headers = request.lower().split(b"\r\n")
                [size] = [line for line in headers if line.startswith(b"content-length:")]
                await reader.readexactly(int(size.split(b":")[1]))
                await asyncio.sleep(delay)
                writer.write(answer)
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            writer.close()

    async def run() -> None:
        server = await asyncio.start_server(handle, "127.0.0.1", 0, backlog=512)
        connection.send(server.sockets[0].getsockname()[1])
        await server.serve_forever()

    asyncio.run(run())


if __name__ == "__main__":
    main()
