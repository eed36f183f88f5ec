"""No training dialogue is in a set that is evaluated, whatever is duplicated in the data."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from kvfidelity.dialogues.extract import extract
from kvfidelity.dialogues.segments import ChatSegmenter
from kvfidelity.finetuning.examples import Example
from kvfidelity.finetuning.extraction import training_examples
from tests.models.tiny import tiny_tokenizer

NUMBER = 60


def conversation(number: int, turns: int = 4) -> list[dict[str, str]]:
    return [
        {"from": speaker, "value": f"{speaker} says {number} and {number * 7 % 101} at {turn}"}
        for turn in range(turns)
        for speaker in ("human", "gpt")
    ]


def with_duplicates() -> list[dict[str, Any]]:
    """Each conversation under three ids; half of them also in half their length, and respaced."""
    records = []
    for number in range(NUMBER):
        whole = conversation(number)
        respaced = [{**whole[0], "value": f" {whole[0]['value'].upper()}  "}, *whole[1:6]]
        others = (whole[:4], respaced) if number % 2 else ()
        for copy, messages in enumerate((whole, *others, whole, whole)):
            records.append({"id": f"c{number}-{copy}", "conversations": messages})
    return records


@pytest.fixture(scope="module")
def segmenter() -> ChatSegmenter:
    return ChatSegmenter(tiny_tokenizer())


def folder(root: Path, records: list[dict[str, Any]]) -> Path:
    root.mkdir()
    (root / "data.json").write_text(json.dumps(records))
    (root / "provenance.json").write_text("{}")
    return root


def texts(examples: list[Example]) -> list[str]:
    tokenizer = tiny_tokenizer()
    return [tokenizer.decode(example.ids) for example in examples]


def trained_on(data: Path, segmenter: ChatSegmenter, **select: Any) -> list[str]:
    entry = {"format": "sharegpt", "dialogues": 999, "select": select}
    return texts(training_examples(data, entry, segmenter)[0])


@pytest.mark.parametrize("similarity", [None, 0.8])
def test_training_dialogues_are_in_no_evaluated_set(
    tmp_path: Path, segmenter: ChatSegmenter, similarity: float | None
) -> None:
    """Neither as a copy, nor in another length, nor in other spacing; whatever the settings are."""
    data = folder(tmp_path / "data", with_duplicates())
    evaluated = {"split": "test", "max_similarity": similarity, "pool": 999, "seed": 3}
    pool, _ = extract(data, {"format": "sharegpt", "select": evaluated}, segmenter)
    openings = {row["turns"][0]["user"].lower().split()[2] for row in pool.to_dicts()}
    for select in ({}, {"min_turns": 3}, {"max_tokens": 2000}, {"seed": 9, "split": "test"}):
        trained = trained_on(data, segmenter, **select)
        assert len(trained) > 3 and pool.height > 3
        numbers = {text.split(" says ")[1].split()[0] for text in map(str.lower, trained)}
        assert not numbers & openings


def test_a_copy_with_another_id_in_another_file_is_left_out_too(
    tmp_path: Path, segmenter: ChatSegmenter
) -> None:
    """The half follows from the texts alone, so two files agree on it."""
    records = [{"id": f"a{n}", "conversations": conversation(n)} for n in range(NUMBER)]
    renamed = [{**one, "id": f"b{n}"} for n, one in enumerate(reversed(records))]
    trained = trained_on(folder(tmp_path / "one", records), segmenter)
    entry = {"format": "sharegpt", "select": {"split": "test", "pool": 999}}
    pool, _ = extract(folder(tmp_path / "other", renamed), entry, segmenter)
    shown = {row["turns"][-1]["assistant"] for row in pool.to_dicts()}
    assert len(shown) > 20 and len(trained) > 5
    assert not [one for one in trained for other in shown if other in one]


def test_without_the_check_of_openings_it_would_leak(
    tmp_path: Path, segmenter: ChatSegmenter
) -> None:
    """The data of the test above do hold conversations whose lengths are in both halves."""
    data = folder(tmp_path / "data", with_duplicates())
    entry = {"format": "sharegpt", "dialogues": 999, "select": {"max_similarity": None}}
    _, manifest = training_examples(data, entry, segmenter)
    assert manifest["dropped"]["opening_of_other_split"] > 5
