"""The example of docs/engines.md and the adapter of transformers do what the page says."""

from __future__ import annotations

import importlib.util
import json
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from transformers import AutoModelForCausalLM

from kvfidelity.decoding.engine import Engine
from kvfidelity.engine_check.answers import Answer, AnswerKind, read_answers
from kvfidelity.engine_check.bookkeeping import BY_NAME, MODES
from kvfidelity.engine_check.probes import ProbeSet, read_probe_set, write_probe_set
from kvfidelity.engine_check.verdict import judge
from tests.models.tiny import tiny_llama, tiny_tokenizer

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/engines.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def folder(engine: Engine, probe_set: ProbeSet, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model of the probe set, and the probe set, as files."""
    made = tmp_path_factory.mktemp("engine")
    plain = tiny_llama()
    plain.load_state_dict(
        {name: value for name, value in engine.model.state_dict().items() if "rotary" not in name},
        strict=False,
    )
    plain.save_pretrained(made / "model")
    tiny_tokenizer().save_pretrained(made / "model")
    write_probe_set(made / "probes.jsonl", probe_set)
    return made


def adapter(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, ROOT / "adapters" / f"{name}.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_example_runs_without_this_package_and_is_stale(folder: Path) -> None:
    [code] = re.findall(r"```python\n(.*?)```", PAGE, flags=re.S)
    assert "kvfidelity" not in code
    assert len(code.splitlines()) <= 32
    (folder / "example.py").write_text(code, encoding="utf-8")
    arguments = ["model", "probes.jsonl", "answers.jsonl"]
    subprocess.run([sys.executable, "example.py", *arguments], cwd=folder, check=True)
    read = read_probe_set(folder / "probes.jsonl")
    verdict = judge(read_answers(folder / "answers.jsonl", read), read)
    assert (verdict.name, verdict.candidates, verdict.fits) == ("stale", ("stale",), True)
    assert "positions shared over heads (per_head is not answered)" in verdict.unseen


@pytest.mark.parametrize(("seen", "mode"), [(False, "stale"), (True, "original")])
def test_a_cache_evicted_by_hand_is_stale_or_original(
    folder: Path, probe_set: ProbeSet, seen: bool, mode: str
) -> None:
    model: Any = AutoModelForCausalLM.from_pretrained(folder / "model").eval()
    lines = (folder / "probes.jsonl").read_text(encoding="utf-8").splitlines()
    answer = adapter("transformers_dynamic_cache").answer
    answers = {
        probe["probe"]: Answer(AnswerKind.LOGPROB, answer(model, probe, seen))
        for probe in map(json.loads, lines[1:])
    }
    verdict = judge(answers, probe_set)
    assert (verdict.name, verdict.candidates, verdict.fits) == (mode, (mode,), True)


def test_every_bookkeeping_is_on_the_page() -> None:
    told = PAGE.partition("## What is told apart")[2]
    for name in MODES:
        assert f"`{name}`" in told
    whole = {name for name, each in BY_NAME.items() if each.is_fault}
    for name in whole:
        start = name.rsplit("_too_", 1)[0].rsplit("_first", 1)[0].rsplit("without", 1)[0]
        assert name in told or start in told, name


@pytest.mark.parametrize("file", sorted((ROOT / "adapters").glob("*.py")), ids=lambda f: f.stem)
def test_every_adapter_names_its_environment_and_stands_on_the_page(file: Path) -> None:
    text = file.read_text(encoding="utf-8")
    assert text.startswith("# /// script\n")
    assert "dependencies = [" in text
    assert f"adapters/{file.name}" in text and f"adapters/{file.name}" in PAGE
