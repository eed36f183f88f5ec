"""Which tokens end a reply, as a model's files say."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from kvfidelity.decoding.engine import Engine
from kvfidelity.errors import UserError
from kvfidelity.models.end_tokens import end_token_ids
from tests.models.tiny import save_tiny


def write(folder: Path, name: str, entry: Any) -> None:
    (folder / name).write_text(json.dumps({"eos_token_id": entry}), encoding="utf-8")


def test_a_list_in_the_generation_config_stops_replies(tmp_path: Path) -> None:
    folder = save_tiny(tmp_path / "model")
    own = Engine.load(folder, "float32", "cpu").segmenter.stop_ids
    write(folder, "generation_config.json", [7, 9])
    segmenter = Engine.load(folder, "float32", "cpu").segmenter
    assert segmenter.stop_ids == own | {7, 9}
    assert segmenter.notes["stop_ids"] == sorted(own | {7, 9})


@pytest.mark.parametrize(
    ("generation", "config", "expected"),
    [(3, 5, {3}), (None, 5, {5}), (None, [4, 6], {4, 6}), (None, None, set())],
)
def test_config_json_speaks_where_the_generation_config_is_silent(
    tmp_path: Path, generation: Any, config: Any, expected: set[int]
) -> None:
    write(tmp_path, "generation_config.json", generation)
    write(tmp_path, "config.json", config)
    assert end_token_ids(tmp_path) == expected


def test_a_folder_without_these_files_names_none(tmp_path: Path) -> None:
    assert end_token_ids(tmp_path) == frozenset()


@pytest.mark.parametrize("entry", ["</s>", [1, None], -1, True, {"id": 2}, 2**31, 10**30])
def test_an_entry_that_is_no_id_is_refused(tmp_path: Path, entry: Any) -> None:
    write(tmp_path, "generation_config.json", entry)
    with pytest.raises(UserError, match=r"generation_config\.json: eos_token_id"):
        end_token_ids(tmp_path)


@pytest.mark.parametrize("text", ["[1]", "{", ""])
def test_a_file_that_is_no_object_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "generation_config.json").write_text(text, encoding="utf-8")
    with pytest.raises(UserError, match="not a JSON object"):
        end_token_ids(tmp_path)
