"""A fine-tuned model's dialogues are its base's: the copy is what an extraction would give."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from kvfidelity.errors import UserError
from kvfidelity.finetuning.base_dialogues import check_same_tokenizer, pool_of_base
from kvfidelity.models.checksums import copy_without_weights
from kvfidelity.records.artifacts import read_metadata, write_parquet
from tests.finetuning.small import base_model, dialogues, finetune

ROOT = Path(__file__).parents[2]
SPEC = {"format": "sharegpt", "select": {"split": "test", "pool": 9}, "code": "0"}


def reach(dtype: str, at: str) -> dict[str, Any]:
    return {
        "dataset": "mine",
        "count": 2,
        "dtype": dtype,
        "max_turns": None,
        "tokens_per_turn": 5,
        "tokens_per_dialogue": 64,
        "thresholds": {"large": at, "small": "10tok"},
    }


def outputs(folder: Path) -> list[Any]:
    return [
        *("--pool", folder / "pool.parquet", "--manifest", folder / "manifest.json"),
        *("--tokenizer", folder / "tokenizer"),
    ]


def script(name: str, *arguments: Any) -> None:
    command = [sys.executable, str(ROOT / f"workflow/scripts/{name}.py"), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def extract(model: Path, data: Path, folder: Path, wanted: dict[str, Any]) -> None:
    script(
        *("extract_dialogues", "--data", data, "--model", model, "--spec", json.dumps(SPEC)),
        *("--reach", json.dumps(wanted), *outputs(folder)),
    )


def contents(folder: Path) -> dict[str, bytes]:
    files = [file for file in folder.rglob("*") if file.is_file()]
    return {str(file.relative_to(folder)): file.read_bytes() for file in files}


def test_a_copy_of_the_bases_dialogues_is_what_an_extraction_gives(tmp_path: Path) -> None:
    """Pool with its notes, manifest with the model's own thresholds, and tokenizer."""
    base, data, tuned = base_model(tmp_path), dialogues(tmp_path), tmp_path / "tuned"
    finetune(base, data, tuned, tmp_path / "checkpoints", steps=1)
    of_base, copied, extracted = (tmp_path / name for name in ("a", "b", "c"))
    extract(base, data, of_base, reach("float32", "1MB"))
    wanted = reach("bfloat16", "9MB")
    extract(tuned, data, extracted, wanted)
    script(
        *("copy_dialogues", "--base", of_base / "pool.parquet"),
        *("--base-manifest", of_base / "manifest.json"),
        *("--base-tokenizer", of_base / "tokenizer", "--data-record", data / "provenance.json"),
        *("--model", tuned, "--spec", json.dumps(SPEC), "--reach", json.dumps(wanted)),
        *outputs(copied),
    )
    found, expected = contents(copied), contents(extracted)
    pools = [pl.read_parquet(one / "pool.parquet") for one in (copied, extracted)]
    assert pools[0].equals(pools[1]) and pools[0].height > 2
    notes = [read_metadata(one / "pool.parquet") for one in (copied, extracted, of_base)]
    assert notes[0] == notes[1] != notes[2]
    assert found == expected
    [entry] = json.loads(found["manifest.json"])["not_reached"]
    before = json.loads((of_base / "manifest.json").read_text())["not_reached"]
    assert entry["threshold"] == "large" and [entry] != before


def made(folder: Path, **notes: str) -> Path:
    file = folder / "pool.parquet"
    inputs = json.dumps({"model": "m", "dataset": notes.pop("dataset", "d")})
    known = {"code": "1", "settings": "2", "inputs": inputs} | notes
    write_parquet(pl.DataFrame({"dialogue": ["000"]}), file, kind="dialogues", metadata=known)
    return file


WANTED = {
    "code": "1",
    "settings": "2",
    "inputs": json.dumps({"model": "tuned", "dataset": "d"}),
}


@pytest.mark.parametrize(
    ("notes", "what"),
    [({"code": "0"}, "code"), ({"settings": "0"}, "settings"), ({"dataset": "e"}, "dataset")],
)
def test_dialogues_that_were_extracted_otherwise_are_refused(
    tmp_path: Path, notes: dict[str, str], what: str
) -> None:
    assert pool_of_base(made(tmp_path), WANTED).height == 1
    with pytest.raises(UserError, match=rf"extracted otherwise \({what}\): delete it"):
        pool_of_base(made(tmp_path, **notes), WANTED)


def test_damaged_dialogues_are_refused(tmp_path: Path) -> None:
    """The copy would have a digest of its own, so damage would not be seen any more."""
    file = made(tmp_path)
    metadata = pl.read_parquet_metadata(file)
    pl.DataFrame({"dialogue": ["001"]}).write_parquet(
        file, metadata={key: text for key, text in metadata.items() if "kvfidelity" in key}
    )
    with pytest.raises(UserError, match=r"is damaged .*: delete it and run again"):
        pool_of_base(file, WANTED)


@pytest.mark.parametrize("change", ["other", "more", "fewer"])
def test_a_model_with_another_tokenizer_is_refused(tmp_path: Path, change: str) -> None:
    base, model = tmp_path / "a", tmp_path / "b"
    copy_without_weights(base_model(tmp_path), base)
    shutil.copytree(base, model)
    (model / "training.json").write_text("{}")
    check_same_tokenizer(base, model)
    file = model / ("chat_template.txt" if change == "more" else "tokenizer.json")
    if change == "fewer":
        file.unlink()
    else:
        file.write_text("{}")
    with pytest.raises(UserError, match=rf"{file.name} is not that of the base model"):
        check_same_tokenizer(base, model)
