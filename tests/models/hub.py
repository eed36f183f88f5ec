"""A model hub on this machine: the few routes by which huggingface_hub takes a snapshot."""

from __future__ import annotations

import contextlib
import hashlib
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

COMMIT = "0123456789abcdef0123456789abcdef01234567"
TOKEN = "hf_read_only"


class Hub(BaseHTTPRequestHandler):
    """Serves `folder` as the repositories lab/open and, to bearers of TOKEN, lab/gated."""

    folder: Path

    def do_GET(self) -> None:
        self._answer(body=True)

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def log_message(self, *args: Any) -> None:
        """Stay quiet."""

    def _answer(self, *, body: bool) -> None:
        path = self.path.split("?")[0]
        if "lab/gated" in path and self.headers.get("Authorization") != f"Bearer {TOKEN}":
            return self._send(401, b"{}", {"X-Error-Code": "GatedRepo"}, body)
        if "lab/open" not in path and "lab/gated" not in path:
            return self._send(404, b"{}", {"X-Error-Code": "RepoNotFound"}, body)
        name = path.rsplit("/", 1)[1]
        files = sorted(f.name for f in self.folder.iterdir())
        if "/resolve/" in path and name in files:
            content = (self.folder / name).read_bytes()
            etag = f'"{hashlib.sha256(content).hexdigest()}"'
            return self._send(200, content, {"X-Repo-Commit": COMMIT, "ETag": etag}, body)
        if "/revision/" in path and name in ("main", COMMIT):
            about = {"id": "lab/open", "sha": COMMIT, "siblings": [{"rfilename": f} for f in files]}
            return self._send(200, json.dumps(about).encode(), {}, body)
        if "/tree/" in path:
            rows = [
                {"type": "file", "path": f, "size": (self.folder / f).stat().st_size, "oid": f}
                for f in files
            ]
            return self._send(200, json.dumps(rows).encode(), {}, body)
        return self._send(404, b"{}", {"X-Error-Code": "RevisionNotFound"}, body)

    def _send(self, status: int, content: bytes, headers: dict[str, str], body: bool) -> None:
        self.send_response(status)
        for key, value in headers.items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if body:
            self.wfile.write(content)


@contextlib.contextmanager
def local_hub(folder: Path) -> Iterator[str]:
    """Serve `folder`; yields the address."""
    handler = type("FolderHub", (Hub,), {"folder": folder})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}"
        finally:
            server.shutdown()
            thread.join()
