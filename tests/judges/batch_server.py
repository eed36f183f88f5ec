"""A local server with the Batch API: files, batches, and what can go wrong with them."""

from __future__ import annotations

import json
import re
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler
from typing import Any

from tests.judges.server import QuietServer

#: The line of one request in the output or the error file; None leaves it out.
Line = tuple[str, dict[str, Any]] | None


def done(score: int = 7) -> Line:
    """A line of the output file with a verdict."""
    content = json.dumps({"reason": "fine \u2028", "score": score})
    message = {"role": "assistant", "content": content, "refusal": None}
    body = {
        "choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 100, "completion_tokens": 20, "total_tokens": 120},
    }
    return "output", {"response": {"status_code": 200, "body": body}, "error": None}


def wrong(message: str) -> Line:
    """A line of the error file."""
    body = {"error": {"message": message}}
    return "error", {"response": {"status_code": 400, "body": body}, "error": None}


class BatchServer:
    """Finishes a batch after `looks` looks.

    behave: gives the line of a request from the text of its user message. end: the state in which
    batches end. before_reply: called with a request's path after its effect and before its answer,
    so that a client can be killed in between.
    """

    def __init__(
        self,
        behave: Callable[[str], Line] = lambda _: done(),
        *,
        looks: int = 2,
        end: str = "completed",
        before_reply: Callable[[str], None] = lambda _: None,
    ) -> None:
        self.files: dict[str, bytes] = {}
        self.batches: list[dict[str, Any]] = []
        self.behave, self.end, self.before_reply, self.looks = behave, end, before_reply, looks
        self.looked: dict[str, int] = {}
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                if self._route() == "/files":
                    self._send_json(outer.take_file(body))
                elif self._route() == "/batches":
                    self._send_json(outer.take_batch(json.loads(body)))
                else:
                    self._send_json({"error": {"message": "no such thing"}}, 404)

            def do_GET(self) -> None:
                if found := re.fullmatch(r"/files/(\w+)/content", self._route()):
                    self._send_body(outer.files[found[1]], "application/octet-stream")
                elif self._route() == "/batches":
                    self._send_json(
                        {"object": "list", "data": outer.batches[::-1], "has_more": False}
                    )
                else:
                    self._send_json(outer.look(self._route().rsplit("/", 1)[1]))

            def _route(self) -> str:
                """The path without the prefix of OpenAI or Azure and without the query."""
                return re.sub(r"^/(v1|openai)(?=/)", "", self.path.split("?")[0])

            def _send_json(self, content: dict[str, Any], status: int = 200) -> None:
                outer.before_reply(self._route())
                self._send_body(json.dumps(content).encode(), "application/json", status)

            def _send_body(self, body: bytes, kind: str, status: int = 200) -> None:
                self.send_response(status)
                self.send_header("Content-Type", kind)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *args: object) -> None:
                """Silent."""

        self._server = QuietServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}/v1"
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()

    def take_file(self, body: bytes) -> dict[str, Any]:
        name = f"file{len(self.files)}"
        lines = [line for line in body.splitlines() if line.startswith(b'{"custom_id"')]
        self.files[name] = b"\n".join(lines)
        about = {"object": "file", "bytes": len(body), "filename": "x", "purpose": "batch"}
        return {"id": name, "created_at": 0, "status": "processed", **about}

    def take_batch(self, request: dict[str, Any]) -> dict[str, Any]:
        batch = {
            "id": f"batch{len(self.batches)}",
            "object": "batch",
            "endpoint": request["endpoint"],
            "input_file_id": request["input_file_id"],
            "completion_window": request["completion_window"],
            "created_at": int(time.time()),
            "metadata": request["metadata"],
            "status": "validating",
        }
        self.batches.append(batch)
        return batch

    def look(self, name: str) -> dict[str, Any]:
        batch = next(batch for batch in self.batches if batch["id"] == name)
        self.looked[name] = self.looked.get(name, 0) + 1
        batch["status"] = "in_progress"
        if self.looked[name] >= self.looks:
            self._work(batch)
        return batch

    def _work(self, batch: dict[str, Any]) -> None:
        batch["status"] = self.end
        if self.end == "failed":
            batch["errors"] = {"data": [{"message": "model not for batches", "code": "x"}]}
            return
        written: dict[str, list[bytes]] = {"output": [], "error": []}
        for request in self.requests(batch):
            line = self.behave(request["body"]["messages"][1]["content"])
            if line is not None:
                text = json.dumps({"custom_id": request["custom_id"]} | line[1], ensure_ascii=False)
                written[line[0]].append(text.encode())
        for kind, lines in written.items():
            if lines:
                name = f"{batch['id']}{kind}"
                self.files[name] = b"\n".join(lines) + b"\n"
                batch[f"{kind}_file_id"] = name

    def requests(self, batch: dict[str, Any]) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.files[batch["input_file_id"]].splitlines()]

    def __enter__(self) -> BatchServer:
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
