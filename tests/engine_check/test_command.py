"""`kvfidelity check` says it in five lines, and in its exit status."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
import tomllib
from collections.abc import Sequence
from pathlib import Path

import pytest

from kvfidelity.engine_check.bookkeeping import BY_NAME
from kvfidelity.engine_check.probes import ProbeSet, write_probe_set
from tests.engine_check.test_answers import right, write

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def probes(probe_set: ProbeSet, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("probes") / "probes.jsonl"
    write_probe_set(path, probe_set)
    return path


def check(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "kvfidelity", "check", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def answered(probe_set: ProbeSet, path: Path, name: str, kinds: Sequence[str] = ()) -> Path:
    """A file with the answers of a bookkeeping, to probes of some kinds or to all; another one of
    the same mode answers where the fault is not known."""
    mode = BY_NAME[name].mode
    lines = []
    for probe in probe_set:
        if not kinds or probe.kind in kinds:
            known = any(name in each.names for each in probe.expected)
            lines.append(right(probe, name if known else str(mode)))
    return write(path, *lines)


def test_a_right_engine_passes_in_five_lines(
    probe_set: ProbeSet, probes: Path, tmp_path: Path
) -> None:
    answers = answered(probe_set, tmp_path / "answers.jsonl", "rerotated")
    figure, verdict = tmp_path / "figure.svg", tmp_path / "verdict.json"
    done = check(answers, "--probes", probes, "--figure", figure, "--json", verdict)
    assert done.returncode == 0, done.stderr
    lines = dict(line.split(":", 1) for line in done.stdout.splitlines())
    assert list(lines) == ["mode", "deviation", "first departure", "drift", "look for"]
    assert lines["mode"].split()[0] == "rerotated"
    assert lines["first departure"].strip() == "none from rerotated"
    assert lines["look for"].strip() == "nothing"
    assert "<svg" in figure.read_text(encoding="utf-8")
    found = json.loads(verdict.read_text(encoding="utf-8"))
    assert (found["name"], found["passes"]) == ("rerotated", True)


def test_stale_fails_and_says_what_to_look_for(
    probe_set: ProbeSet, probes: Path, tmp_path: Path
) -> None:
    answers = answered(probe_set, tmp_path / "answers.jsonl", "stale")
    done = check(answers, "--probes", probes)
    assert done.returncode == 1
    assert "mode:            stale" in done.stdout
    assert "the next position equals the cached length" in done.stdout
    assert "token 64, after eviction 1" in done.stdout
    assert check(answers, "--probes", probes, "--expect", "stale").returncode == 0


def test_a_fault_is_named(probe_set: ProbeSet, probes: Path, tmp_path: Path) -> None:
    kinds = ("no_eviction", "scattered", "per_head")
    answers = answered(probe_set, tmp_path / "answers.jsonl", "rotated_twice", kinds)
    done = check(answers, "--probes", probes)
    assert done.returncode == 1
    assert "rotated_twice, a fault of rerotated" in done.stdout
    assert "keys that are rotated already" in done.stdout


def test_a_prefix_alone_decides_nothing(probe_set: ProbeSet, probes: Path, tmp_path: Path) -> None:
    kinds = ("no_eviction", "prefix")
    answers = answered(probe_set, tmp_path / "answers.jsonl", "rerotated", kinds)
    done = check(answers, "--probes", probes)
    assert done.returncode == 3
    assert "undecided between stale and rerotated" in done.stdout
    assert "modes that agree on a prefix" in done.stdout


def test_input_errors_are_one_line(probe_set: ProbeSet, probes: Path, tmp_path: Path) -> None:
    answers = answered(probe_set, tmp_path / "answers.jsonl", "rerotated", ["scattered"])
    for arguments, message in (
        ([tmp_path / "none.jsonl", "--probes", probes], "does not exist"),
        ([answers], "give --probes PROBES"),
        ([answers, "--probes", probes], "without an eviction (the yardstick)"),
    ):
        done = check(*arguments)
        assert done.returncode == 2
        [line] = done.stderr.splitlines()
        assert line.startswith("error: ") and message in line


def test_the_check_needs_numpy_alone(probe_set: ProbeSet, probes: Path, tmp_path: Path) -> None:
    answers = answered(probe_set, tmp_path / "answers.jsonl", "rerotated")
    arguments = ["kvfidelity", "check", str(answers), "--probes", str(probes)]
    heavy = "{'torch', 'transformers', 'polars', 'pyarrow', 'altair'}"
    code = (
        f"import sys; sys.argv = {arguments}\n"
        "from kvfidelity.__main__ import main\n"
        "try: main()\n"
        f"except SystemExit as end: print(end.code, {heavy} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "0 set()"


def test_the_console_command_is_the_module() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    module, name = project["scripts"]["kvfidelity"].split(":")
    assert callable(getattr(importlib.import_module(module), name))


def test_a_reader_that_closes_the_pipe_changes_no_status(
    probe_set: ProbeSet, probes: Path, tmp_path: Path
) -> None:
    answers = answered(probe_set, tmp_path / "answers.jsonl", "stale")
    command = [sys.executable, "-m", "kvfidelity", "check", answers, "--probes", probes]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stderr is not None
    process.stdout.close()
    assert (process.stderr.read(), process.wait()) == ("", 1)
