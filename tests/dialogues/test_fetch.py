"""`source: hub`: a table through the datasets library, a single file through a local stand-in."""

from __future__ import annotations

import hashlib
import http.server
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import polars as pl
import pytest

from kvfidelity.dialogues.fetch import fetch_dataset
from kvfidelity.dialogues.formats import SourceCounts, read_conversations
from kvfidelity.errors import UserError
from tests.dialogues.conftest import BUNDLED, ROOT

COMMIT = "0123456789abcdef0123456789abcdef01234567"
FETCH = ROOT / "workflow" / "scripts" / "fetch_dataset.py"


def test_a_hub_id_is_neither_a_pattern_nor_a_local_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "owner/set").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="'owner/set' is also a local path"):
        fetch_dataset({"source": "hub", "id": "owner/set"}, tmp_path / "out")
    with pytest.raises(UserError, match="no id of the hub; correct `id`"):
        fetch_dataset({"source": "hub", "id": str(tmp_path / "owner/[s]et")}, tmp_path / "out")


def test_a_table_comes_through_the_datasets_library(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A folder stands in for the repository; loading is the library's own."""
    messages = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]
    (tmp_path / "repo").mkdir()
    pl.DataFrame([{"id": "a", "messages": messages}]).write_parquet(tmp_path / "repo/test.parquet")
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path / "cache"))
    entry = {"source": "hub", "id": str(tmp_path / "repo"), "split": "test"}
    fetch_dataset(entry, tmp_path / "out")
    [found] = read_conversations(tmp_path / "out" / "data.parquet", "openai", SourceCounts())
    assert [message.text for message in found.messages] == ["Hi", "Hello"]
    assert json.loads((tmp_path / "out/provenance.json").read_text())["split"] == "test"


class Hub(http.server.BaseHTTPRequestHandler):
    """Answers as the hub does for one file of one dataset repository."""

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        self._answer(body=True)

    def _answer(self, *, body: bool) -> None:
        content = BUNDLED.read_bytes()
        found = self.path.startswith("/datasets/me/talks/resolve/") and self.path.endswith(".jsonl")
        self.send_response(200 if found else 404)
        self.send_header("Content-Length", str(len(content) if found else 0))
        self.send_header("ETag", f'"{hashlib.sha1(content).hexdigest()}"')
        self.send_header("X-Repo-Commit", COMMIT)
        if not found:
            self.send_header("X-Error-Code", "RepoNotFound")
        self.end_headers()
        if found and body:
            self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@pytest.fixture
def hub() -> Iterator[str]:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


def fetch(endpoint: str, out: Path, **entry: str) -> subprocess.CompletedProcess[str]:
    given = {"source": "hub", "id": "me/talks", "file": "data/own.jsonl", "revision": "v1"}
    command = [sys.executable, str(FETCH), "--spec", json.dumps(given | entry), "--out", str(out)]
    command += ["--record", str(out.with_suffix(".record"))]
    environment = os.environ | {"HF_ENDPOINT": endpoint, "NO_PROXY": "127.0.0.1"}
    environment.pop("HF_HUB_OFFLINE", None)
    return subprocess.run(command, capture_output=True, text=True, check=False, env=environment)


def test_a_single_file_is_taken_as_it_is(hub: str, tmp_path: Path) -> None:
    done = fetch(hub, tmp_path)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "data.jsonl").read_bytes() == BUNDLED.read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data.jsonl", "provenance.json"]
    provenance = json.loads((tmp_path / "provenance.json").read_text())
    assert (provenance["file"], provenance["revision"]) == ("data/own.jsonl", "v1")


def test_a_repository_that_is_not_there_is_one_line(hub: str, tmp_path: Path) -> None:
    done = fetch(hub, tmp_path, id="me/nothing")
    assert done.returncode == 2
    last = done.stderr.strip().split("\n")[-1]
    assert last.startswith("error: dataset me/nothing could not be loaded from the hub")
    assert "HF_TOKEN if it is gated" in last
    assert not (tmp_path / "data.jsonl").exists()
