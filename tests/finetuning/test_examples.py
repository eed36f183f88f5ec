"""The file of training dialogues: whole, of its base and recipe, or refused by one line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from kvfidelity.dialogues.segments import ChatSegmenter
from kvfidelity.errors import UserError
from kvfidelity.finetuning.examples import examples_digest, read_examples
from kvfidelity.finetuning.extraction import training_examples
from tests.finetuning.small import ADAPTER, base_model, dialogues, extracted, train
from tests.models.tiny import tiny_tokenizer


def base_files(base: Path) -> dict[str, str]:
    found: dict[str, str] = json.loads((base / "provenance.json").read_text())["files"]
    return found


def test_a_file_has_the_dialogues_that_were_extracted(tmp_path: Path) -> None:
    base, data = base_model(tmp_path), dialogues(tmp_path)
    found, facts = read_examples(extracted(base, data), base_files(base), ADAPTER)
    entry = {key: ADAPTER[key] for key in ("select", "dialogues")} | {"format": "sharegpt"}
    expected, manifest = training_examples(data, entry, ChatSegmenter(tiny_tokenizer()))
    assert found == expected and len(found) == ADAPTER["dialogues"]
    assert examples_digest(found) == examples_digest(expected)
    assert facts["manifest"] == json.loads(json.dumps(manifest))


def test_extracting_again_gives_the_same_bytes(tmp_path: Path) -> None:
    base, data = base_model(tmp_path), dialogues(tmp_path)
    first = extracted(base, data).read_bytes()
    assert extracted(base, data).read_bytes() == first


def test_trainings_of_other_arms_and_seeds_read_the_same_file(tmp_path: Path) -> None:
    """One extraction; the data are not needed any more. Their models name the same dialogues."""
    base, data = base_model(tmp_path), dialogues(tmp_path)
    file = extracted(base, data)
    data.rename(tmp_path / "gone")
    made_from = []
    for number, other in enumerate(({}, {"seed": 7, "arm": "skips", "loss": "cross_entropy"})):
        folder = tmp_path / str(number)
        train(base, file, folder, tmp_path / "c", **(other | {"steps": 1}))
        made_from.append(json.loads((folder / "provenance.json").read_text())["made_from"])
    assert made_from[0] == made_from[1]
    found, _ = read_examples(file, base_files(base), ADAPTER)
    assert made_from[0]["dialogues"] == {"number": 8, "sha256": examples_digest(found)}


@pytest.mark.parametrize(
    "other",
    [
        {"dialogues": 7},
        {"select": {**ADAPTER["select"], "max_tokens": 399}},
        {"data_source": {**ADAPTER["data_source"], "path": "other.json"}},
    ],
)
def test_dialogues_of_another_recipe_are_refused(tmp_path: Path, other: dict[str, Any]) -> None:
    base = base_model(tmp_path)
    file = extracted(base, dialogues(tmp_path))
    with pytest.raises(UserError, match=r"dialogues\.json are chosen otherwise: remove it"):
        train(base, file, tmp_path / "m", tmp_path / "c", **other)
    assert not (tmp_path / "m").exists()


def test_dialogues_of_another_base_are_refused(tmp_path: Path) -> None:
    base = base_model(tmp_path)
    file = extracted(base, dialogues(tmp_path))
    files = base_files(base) | {"tokenizer.json": "0" * 64}
    with pytest.raises(UserError, match=r"dialogues\.json are of another base model: remove it"):
        read_examples(file, files, ADAPTER)


def test_a_damaged_file_is_refused_before_weights_are_loaded(tmp_path: Path) -> None:
    base = base_model(tmp_path)
    file = extracted(base, dialogues(tmp_path))
    (base / "model.safetensors").unlink()
    content = file.read_bytes()
    at = content.index(b'"ids": [') + 8
    changed = content[:at] + (b"2" if content[at : at + 1] != b"2" else b"3") + content[at + 1 :]
    others = [b"", b"[]", b"{}", b"3", b"\xff", b"[" * 999, content[:-20], changed]
    for damaged in (*others, content.replace(b'"min_turns": 3', b'"min_turns": 2')):
        assert damaged != content
        file.write_bytes(damaged)
        with pytest.raises(UserError, match=r"dialogues\.json are damaged: remove it and start"):
            train(base, file, tmp_path / "m", tmp_path / "c")
    file.unlink()
    with pytest.raises(UserError, match=r"there are no training dialogues .*dialogues\.json"):
        train(base, file, tmp_path / "m", tmp_path / "c")
