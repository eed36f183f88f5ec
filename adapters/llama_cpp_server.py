# /// script
# requires-python = ">=3.11"
# dependencies = ["xllamacpp"]  # llama.cpp's server, built; not needed with --server
# ///
"""Lets llama.cpp's own server generate beyond its context, and writes what it did as runs.

    python adapters/llama_cpp_server.py model.gguf probes.jsonl runs.jsonl

The server is the one in the package xllamacpp, or with `--server llama-server` that program. With
`--context-shift` a full context loses `n_discard` tokens after the first `n_keep` ones, by
default half of them, and generation goes on. The server reports no keep set, so the adapter writes
what follows from that documented rule. The same tokens are then scored without an eviction by a
second server with a larger context: one request a token, whose next token is forced.
"""

from __future__ import annotations

import argparse
import json
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

CONTEXT, PROMPT, NEW, SINKS = 256, 200, 183, 4
#: Tokens that a shift discards; 0 is the server's own choice, half.
DISCARDS = (0, 4)
FORCED = 1000.0


class Server:
    """A running server."""

    def __init__(self, url: str) -> None:
        self.url = url

    def ask(self, path: str, body: dict | None = None) -> dict:
        """The JSON answer to a request."""
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(
            self.url + path, data, {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=600) as answer:
            return json.load(answer)

    def is_ready(self) -> bool:
        """Whether the model is loaded."""
        try:
            self.ask("/health")
        except (urllib.error.URLError, ConnectionError):
            return False
        return True

    def complete(self, tokens: list[int], count: int, **settings: object) -> list[dict]:
        """Token id and log-probability (of the model, before sampling) of each generated token."""
        settings |= {"prompt": tokens, "n_predict": count, "n_probs": 1, "ignore_eos": True}
        answer = self.ask("/completion", settings)
        found = answer["completion_probabilities"]
        assert len(found) == count, f"{len(found)} tokens instead of {count}"
        return found


@contextmanager
def packaged(threads: int, model: Path, context: int, shift: bool) -> Iterator[Server]:
    """The server of xllamacpp, with one sequence."""
    import xllamacpp

    parameters = xllamacpp.CommonParams()
    parameters.model.path, parameters.n_ctx = str(model), context
    parameters.n_parallel, parameters.ctx_shift, parameters.port = 1, shift, free_port()
    parameters.cpuparams.n_threads = parameters.cpuparams_batch.n_threads = threads
    running = xllamacpp.Server(parameters)  # until it is collected
    yield Server(running.listening_address)


@contextmanager
def program(binary: str, threads: int, model: Path, context: int, shift: bool) -> Iterator[Server]:
    """A program `llama-server`, with one sequence."""
    port = free_port()
    command = [binary, "-m", str(model), "-c", str(context), "-np", "1", "--port", str(port)]
    command += ["-t", str(threads)]
    process = subprocess.Popen([*command, *["--context-shift"] * shift])
    try:
        server = Server(f"http://127.0.0.1:{port}")
        while not server.is_ready():
            if process.poll() is not None:
                sys.exit(f"it ended by itself: {' '.join(command)}")
            time.sleep(0.2)
        yield server
    finally:
        process.terminate()
        process.wait()


def free_port() -> int:
    """A port that nothing listens on."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def shifts(context: int, keep: int, discard: int, total: int) -> list[dict]:
    """The server's rule: evictions after which at least one of `total` tokens is fed."""
    held, found = list(range(PROMPT)), []
    for seen in range(PROMPT, total):
        if len(held) + 1 >= context:
            gone = discard or (len(held) - keep) // 2
            held = held[:keep] + held[keep + gone :]
            found.append({"after": seen, "keep": [[[0, keep], [held[keep], seen]]]})
        held.append(seen)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("probes", type=Path, help="its longest conversation is cut into prompts")
    parser.add_argument("runs", type=Path)
    parser.add_argument("--server", help="the program llama-server, instead of the package")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--prompts", type=int, default=2, help="for each number of discards")
    options = parser.parse_args()
    _, *probes = map(json.loads, options.probes.read_text(encoding="utf-8").splitlines())
    text = max((probe["tokens"] for probe in probes), key=len)
    start = partial(program, options.server) if options.server else packaged
    running = partial(start, options.threads)
    runs = []
    with running(options.model, CONTEXT, True) as server:
        context = server.ask("/props")["default_generation_settings"]["n_ctx"]
        # A model whose prompts begin with a token of their own keeps that one too.
        first = server.ask("/tokenize", {"content": "", "add_special": True})["tokens"]
        keep = SINKS + len(first)
        for number in range(options.prompts * len(DISCARDS)):
            discard, prompt = DISCARDS[number % len(DISCARDS)], text[PROMPT * number :][:PROMPT]
            shift = {"n_keep": SINKS, "n_discard": discard, "cache_prompt": False}
            new = server.complete(prompt, NEW, temperature=1.0, seed=number, **shift)
            tokens = prompt + [each["id"] for each in new]
            evictions = shifts(context, keep, discard, len(tokens) - 1)
            scored = [evictions[0]["after"] + 1, len(tokens)]
            run = {"conversation": str(number), "tokens": tokens, "scored": scored}
            logprob = [each["logprob"] for each in new][scored[0] - PROMPT :]
            runs.append(run | {"evictions": evictions, "logprob": logprob})
    with running(options.model, 2 * (PROMPT + NEW), False) as server:
        for run in list(runs):
            logprob = []
            for index in range(*run["scored"]):
                forced = run["tokens"][index]
                bias = {"logit_bias": [[forced, FORCED]], "temperature": 0.0}
                [answer] = server.complete(run["tokens"][:index], 1, cache_prompt=True, **bias)
                assert answer["id"] == forced, "logit_bias does not force the next token"
                logprob.append(answer["logprob"])
            runs.append(run | {"evictions": [], "logprob": logprob})
    with options.runs.open("w", encoding="utf-8") as file:
        for run in runs:
            kind = "shifted" if run["evictions"] else "no_eviction"
            file.write(json.dumps({"probe": f"{run['conversation']}_{kind}"} | run) + "\n")


if __name__ == "__main__":
    main()
