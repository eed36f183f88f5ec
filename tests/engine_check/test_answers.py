"""Answers that are malformed are refused by name; both file formats say the same."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from kvfidelity.engine_check.answers import Answer, AnswerKind, read_answers
from kvfidelity.engine_check.probes import Probe, ProbeSet, read_probe_set, write_probe_set
from kvfidelity.errors import UserError


def write(path: Path, *lines: dict[str, Any]) -> Path:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return path


def right(probe: Probe, name: str = "rerotated") -> dict[str, Any]:
    return {"probe": probe.name, "logprob": probe.expected_of(name).logprob.tolist()}


def test_a_probe_set_reads_as_it_was_written(probe_set: ProbeSet, tmp_path: Path) -> None:
    write_probe_set(tmp_path / "probes.jsonl", probe_set)
    found = read_probe_set(tmp_path / "probes.jsonl")
    assert found.header == probe_set.header
    for one, other in zip(found, probe_set, strict=True):
        assert (one.tokens, one.scored, one.evictions) == (
            other.tokens,
            other.scored,
            other.evictions,
        )
        for mine, yours in zip(one.expected, other.expected, strict=True):
            assert mine.names == yours.names
            np.testing.assert_allclose(mine.logprob, yours.logprob, atol=1e-5)
            assert mine.greedy.tolist() == yours.greedy.tolist()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "is empty"),
        ("{}\n", "no probe set"),
        ('{"format": "kvfidelity-probes", "version": 99}\n', "version 99"),
        ('{"format": "kvfidelity-probes", "version": 1}\n{"probe": "x"}\n', "line 2, is no probe"),
        ('{"format": "kvfidelity-probes", "version": 1}\nnothing\n', "line 2, is not JSON"),
    ],
)
def test_another_file_is_no_probe_set(tmp_path: Path, content: str, message: str) -> None:
    file = tmp_path / "probes.jsonl"
    file.write_text(content, encoding="utf-8")
    with pytest.raises(UserError, match=message):
        read_probe_set(file)


def test_malformed_answers_are_refused_by_name(probe_set: ProbeSet, tmp_path: Path) -> None:
    probe = probe_set.find("short_scattered")
    assert probe is not None
    values = right(probe)["logprob"]
    greedy = {"probe": "short_prefix", "greedy": [1] * probe.count}
    for lines, message in (
        ([{"probe": "unknown", "logprob": values}], "no probe 'unknown'"),
        ([right(probe), right(probe)], "answered twice"),
        ([{"probe": probe.name, "logprob": values[:-1]}], f"{probe.count - 1} values"),
        ([{"probe": probe.name, "logprob": [*values[:-1], float("nan")]}], "token 111: nan"),
        ([{"probe": probe.name, "logprob": [*values[:-1], 2.5]}], "not above 0"),
        ([{"probe": probe.name, "logprob": [*values[:-1], "x"]}], "'x' is no logprob"),
        ([{"probe": probe.name, "logprob": [*values[:-1], None]}], "'None' is no logprob"),
        ([{"probe": probe.name, "logprob": [*values[:-1], True]}], "'True' is no logprob"),
        ([{"probe": probe.name, "logprob": []}], "0 values of logprob"),
        ([{"probe": probe.name, "top": [[]] * probe.count}], "empty top list"),
        ([{"probe": probe.name, "top": [{"10": -0.5}] * probe.count}], "is no top"),
        ([{"probe": probe.name, "top": [[[1, -1], [1, -2]]] * probe.count}], "a token twice"),
        ([{"probe": probe.name, "top": [[[1, float("nan")]]] * probe.count}], "finite"),
        ([{"probe": probe.name, "greedy": [1.5] * probe.count}], "'1.5' is no greedy"),
        ([{"probe": probe.name, "greedy": [float("inf")] * probe.count}], "'inf' is no greedy"),
        ([{"probe": probe.name, "greedy": [-1] * probe.count}], "'-1' is no greedy"),
        ([right(probe) | {"scored": 64}], "answers tokens 64"),
        ([{"probe": probe.name}], "a line has one of"),
        ([right(probe) | {"scored": [0, probe.count]}], "the probe asks for"),
        ([right(probe), greedy], "of one kind, not greedy and logprob"),
    ):
        with pytest.raises(UserError, match=message):
            read_answers(write(tmp_path / "answers.jsonl", *lines), probe_set)


def test_parquet_and_json_lines_are_read_alike(probe_set: ProbeSet, tmp_path: Path) -> None:
    probes = [probe for probe in probe_set if probe.conversation == "short"]
    lines = [right(probe) for probe in probes]
    rows = [
        {"probe": probe.name, "token_index": index, "logprob": value}
        for probe, line in zip(probes, lines, strict=True)
        for index, value in enumerate(line["logprob"], start=probe.scored[0])
    ]
    pl.DataFrame(rows).sample(fraction=1, shuffle=True, seed=0).write_parquet(
        tmp_path / "answers.parquet"
    )
    one = read_answers(tmp_path / "answers.parquet", probe_set)
    other = read_answers(write(tmp_path / "answers.jsonl", *lines), probe_set)
    assert {name: list(answer.values) for name, answer in one.items()} == {
        name: list(answer.values) for name, answer in other.items()
    }


def test_a_parquet_file_with_gaps_or_other_columns_is_refused(
    probe_set: ProbeSet, tmp_path: Path
) -> None:
    file = tmp_path / "answers.parquet"
    pl.DataFrame({"probe": ["short_prefix"], "value": [1.0]}).write_parquet(file)
    with pytest.raises(UserError, match="needs probe, token_index and one of logprob"):
        read_answers(file, probe_set)
    pl.DataFrame(
        {"probe": ["short_prefix"] * 2, "token_index": [64, 66], "logprob": [-1.0, -1.0]}
    ).write_parquet(file)
    with pytest.raises(UserError, match="gaps or repeats"):
        read_answers(file, probe_set)
    pl.DataFrame(
        {"probe": ["short_prefix"], "token_index": [None], "logprob": [-1.0]}
    ).write_parquet(file)
    with pytest.raises(UserError, match="a column of integers"):
        read_answers(file, probe_set)
    pl.DataFrame(
        {"probe": ["short_prefix"], "token_index": [64], "logprob": [-1.0], "greedy": [1]}
    ).write_parquet(file)
    with pytest.raises(UserError, match="of one kind, not logprob and greedy"):
        read_answers(file, probe_set)
    file.write_bytes(b"PAR1 and no more")
    with pytest.raises(UserError, match="no readable Parquet file"):
        read_answers(file, probe_set)


def test_a_top_list_is_compared_at_the_scored_token_if_it_is_listed(probe_set: ProbeSet) -> None:
    probe = probe_set.find("short_scattered")
    assert probe is not None
    expected = probe.expected_of("rerotated")
    targets = probe.tokens[slice(*probe.scored)]
    listed = [{token: value - 0.5} for token, value in zip(targets, expected.logprob, strict=True)]
    assert Answer(AnswerKind.TOP, listed).deviations(expected, probe).tolist() == pytest.approx(
        [-0.5] * probe.count
    )
    # Not listed: the most likely one is less likely than the last, or none is as the first.
    above = [{-1: 0.0}] * probe.count
    assert Answer(AnswerKind.TOP, above).deviations(expected, probe).tolist() == pytest.approx(
        (-expected.greedy_logprob).tolist()
    )
    below = [{-1: float(value) - 2} for value in expected.greedy_logprob]
    assert Answer(AnswerKind.TOP, below).deviations(expected, probe).tolist() == pytest.approx(
        [-2.0] * probe.count
    )
