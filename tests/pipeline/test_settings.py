"""Configuration, sizes, grid: what is accepted, and the messages for the rest."""

from __future__ import annotations

import datetime
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from kvfidelity.cache.policies.registry import policy_schema
from kvfidelity.errors import UserError
from kvfidelity.pipeline.config_docs import config_docs
from kvfidelity.pipeline.rule_params import run_spec
from kvfidelity.pipeline.setting_schemas import policy_schemas
from kvfidelity.pipeline.settings import check_files, load_settings, read_settings
from kvfidelity.records.grid import Cell, RunKey, cells, run_keys
from kvfidelity.sizes import divided, parse_share, size_in_bytes, size_in_tokens
from kvfidelity.strict_yaml import read_yaml
from tests.workflow.project import merged

ROOT = Path(__file__).parents[2]
#: `config/claims.yaml` is no configuration of a run and has a schema of its own.
FOUND = {*ROOT.glob("config/*.yaml"), *ROOT.glob("config/experiments/*.yaml")}
CONFIGS = sorted(FOUND - {ROOT / "config/claims.yaml"})


def default() -> dict[str, Any]:
    """The default configuration, and a policy with a bounded parameter."""
    config: dict[str, Any] = yaml.safe_load((ROOT / "config/config.yaml").read_text())
    config["policies"]["mixed"] = {"kind": "random", "keep_ratio": 0.9}
    return config


def as_run(file: Path) -> dict[str, Any]:
    """The settings of a shipped configuration, as Snakemake runs it."""
    return read_settings([file], default=ROOT / "config/config.yaml")


@pytest.mark.parametrize("file", CONFIGS, ids=lambda file: file.name)
def test_every_shipped_configuration_is_valid(file: Path) -> None:
    assert run_keys(as_run(file))


def test_the_papers_configuration_stands_alone() -> None:
    settings = as_run(ROOT / "config/paper.yaml")
    assert set(settings["policies"]) == {"baseline", "attention_top_99", "gist_2000"}
    found = cells(settings)
    assert {(cell.model, cell.dataset) for cell in found} == {
        ("llama-3-8b-instruct", "sharegpt-long")
    }
    assert (len(found), len(run_keys(settings))) == (13, 260)


def test_every_key_of_the_configuration_has_a_meaning() -> None:
    tables = config_docs().split("\n## Policies\n")[0]
    rows = [line.split(" | ") for line in tables.splitlines() if line.startswith("| `")]
    assert len(rows) > 70
    assert [row[0] for row in rows if len(row[-1].strip(" |")) < 5] == []


def test_generated_files_are_current() -> None:
    """If not: run `python -m kvfidelity.cache.policies.registry`, `python -m
    kvfidelity.pipeline.config_docs`."""
    assert policy_schemas() == json.loads(json.dumps(policy_schema()))
    assert (ROOT / "config/README.md").read_text(encoding="utf-8") == config_docs()


@pytest.mark.parametrize(
    ("key_path", "value", "message"),
    [
        (("thresholds", "half", "at"), "600 MBs", "600MB (10^6 bytes)"),
        (("thresholds", "half", "trigger"), "turns", "did you mean 'turn'?"),
        (("thresholds", "half", "target"), "700tok", "target must be below `at`"),
        (("policies", "mixed", "keep_ratio"), 1.5, "at most 1"),
        (("policies", "mixed", "keep_ratio"), 0, "above 0"),
        (("policies", "mixed", "keep_rato"), 0.5, "did you mean 'keep_ratio'?"),
        (("policies", "mixed", "kind"), "randm", "did you mean 'random'?"),
        (("policies", "mixed"), {"kind": "chunkkv", "policy": "knrm"}, "mean 'knorm'?"),
        (
            ("policies", "mixed"),
            {
                "kind": "protect",
                "policy": {"kind": "chunkkv", "policy": {"kind": "cur", "bloc": 4}},
            },
            "policies.mixed.policy.policy: unknown key 'bloc'; did you mean 'block'?",
        ),
        (("policies", "mixed"), {"kind": "chunkkv", "policy": {"chunk": 4}}, "kind must be given"),
        (("policies", "mixed"), {"kind": "chunkkv", "policy": "baseline"}, "ranks nothing"),
        (("polices",), {}, "did you mean 'policies'?"),
        (("models", "a/b"), {"source": "hub", "id": "x"}, "the name 'a/b' may have"),
        (("models", "smollm2-135m", "sha256"), "x", "64 digits"),
        (("models", "smollm2-135m", "source"), "weel", "did you mean 'wheel'?"),
        (("grid",), {"policies": ["gits"]}, "did you mean 'gist'?"),
        (("grid",), {"positions": ["stal"]}, "did you mean 'stale'?"),
        (("grid",), {"include": [{"policy": "gits"}]}, "did you mean 'gist'?"),
        (("grid",), {"exclude": [{"threshold": "window"}]}, "known: half, none, paper"),
        (("grid",), {"exclude": [{"seed": 0}]}, "nothing is left to run"),
        (("grid",), {"include": [{"threshold": "none"}]}, "added automatically"),
        (("thresholds", "none"), {"at": "600tok", "trigger": "turn"}, "means no eviction"),
        (("policies", "baseline", "kind"), "knorm", "one of kind baseline is needed"),
        (
            ("policies", "again"),
            {"kind": "baseline"},
            "baseline and again are all of kind baseline",
        ),
        (("policies", "mixed", "keep_ratio"), float("nan"), "write a finite number"),
        (("title",), datetime.date(2024, 5, 1), "read as a date; put it in quotes"),
        (("judging",), ["formual"], "did you mean 'formula'?"),
        (("session", "lanes"), 2, "unknown key 'lanes'; it is now called 'batch_size'"),
        (("judges", "formula", "key_env"), "KEY", "it is now called 'api_key_env'"),
        (("judges", "formula", "kind"), "offline", "'offline' is now called 'formula'"),
        (("session", "max_new_tokens"), -1, "at least 0"),
        (("judges", "formula", "rubric"), "pairwise", "kind formula compares nothing"),
        (("judges", "x"), {"kind": "openai", "rubric": "blind"}, "model must be given"),
        (
            ("judges", "x"),
            {"kind": "openai", "rubric": "blind", "model": "m", "max_usd": 1},
            "add `prices: {m: {input: ..., output: ...}}`",
        ),
        (
            ("judges", "x"),
            {"kind": "openai", "rubric": "blind", "model": "m", "api": "azure"},
            "api_version must be given",
        ),
        (("session", "replies"), 3, "not one of reference, own"),
        (
            ("session", "max_first_prompt_tokens"),
            4096,
            "a needle could be cut away",
        ),
        (
            ("session",),
            {"batch_size": 1, "workers_per_gpu": 2},
            "set workers_per_gpu to 1, or a larger batch_size",
        ),
    ],
)
def test_a_mistake_is_named_with_its_remedy(
    key_path: tuple[str, ...], value: object, message: str
) -> None:
    config = default()
    inner = config
    for key in key_path[:-1]:
        inner = inner[key]
    inner[key_path[-1]] = value
    with pytest.raises(UserError) as caught:
        load_settings(config, "my.yaml")
    text = str(caught.value)
    assert text.startswith("my.yaml: ")
    assert message in text
    assert "\n" not in text


def test_a_missing_key_is_named() -> None:
    config = default()
    del config["datasets"]["sharegpt"]["sha256"]
    with pytest.raises(UserError, match="sha256 must be given"):
        load_settings(config)


LLAMA_3_8B = {"token_bytes": 131072, "window": 8192}


@pytest.mark.parametrize(
    ("size", "tokens"),
    [("600MiB", 4800), ("600MB", 4577), ("700MiB", 5600), ("5600tok", 5600), ("0.7win", 5734)],
)
def test_sizes_of_llama_3_8b_in_bf16(size: str, tokens: int) -> None:
    assert size_in_tokens(size, **LLAMA_3_8B) == tokens


@pytest.mark.parametrize("size", ["600 MBs", "MB", "-3tok", "600mb", "", "1e3tok"])
def test_what_is_no_size_is_refused_with_the_accepted_forms(size: str) -> None:
    with pytest.raises(UserError, match="is no size; write"):
        size_in_tokens(size, **LLAMA_3_8B)


def test_a_size_that_holds_no_token_is_refused() -> None:
    with pytest.raises(UserError, match="holds no token"):
        size_in_tokens("1kB", **LLAMA_3_8B)
    with pytest.raises(UserError, match="must be in bytes"):
        size_in_bytes("0.5win")


@pytest.mark.parametrize("parts", [1, 2, 3, 8])
def test_a_size_and_a_share_are_divided(parts: int) -> None:
    assert size_in_bytes(divided("6GB", parts)) == pytest.approx(6e9 / parts, abs=10)
    assert parse_share(divided("50%", parts)) == pytest.approx(0.5 / parts, abs=1e-6)


def test_the_arithmetic_of_a_model_is_printed() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "kvfidelity.pipeline.cache_sizes"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert "131,072 bytes per token" in done.stdout
    assert "600MiB    4,800" in done.stdout


def test_the_baseline_runs_once_whatever_the_grid() -> None:
    settings = load_settings(default() | {"grid": {"policies": ["gist"], "positions": ["stale"]}})
    assert [(c.policy, c.positions, c.threshold) for c in cells(settings)] == [
        ("baseline", "original", "none"),
        ("gist", "stale", "half"),
        ("gist", "stale", "paper"),
    ]


def test_include_and_exclude() -> None:
    grid = {
        "policies": ["gist"],
        "include": [{"policy": "mixed", "positions": "stale"}],
        "exclude": [{"policy": "gist", "positions": "rerotated"}],
    }
    found = {(c.policy, c.positions) for c in cells(load_settings(default() | {"grid": grid}))}
    assert found == {
        ("baseline", "original"),
        ("gist", "stale"),
        ("gist", "original"),
        ("mixed", "stale"),
    }


def test_a_cells_path() -> None:
    cell = Cell("m", "d", "p", "stale", "t", 3)
    path = "m/d/p/stale/t/3/007"
    assert cell.run_key("007") == path
    key = RunKey.from_path(path)
    assert (key.cell, key.dialogue, key.path()) == (cell, "007", path)
    with pytest.raises(TypeError):
        RunKey.from_path("m/d")


def faults(config: dict[str, Any]) -> list[str]:
    with pytest.raises(UserError) as caught:
        load_settings(config, "my.yaml")
    return str(caught.value).splitlines()


def test_all_mistakes_are_named_at_once() -> None:
    config = default()
    config["session"] = {"replies": "both", "max_turn": 3}
    config["title"] = 7
    assert len(faults(config)) == 3
    config = default()
    config["policies"]["a"] = {"kind": "randm"}
    config["policies"]["b"] = {"kind": "random", "keep_ratio": 2}
    config["datasets"]["sharegpt"]["count"] = 65
    config["judging"] = ["formual"]
    found = faults(config)
    assert [line.split(":")[1].strip() for line in found] == [
        "datasets.sharegpt.count",
        "policies.a",
        "policies.b.keep_ratio",
        "judging",
    ]
    assert "65 is more than the 64 dialogues of datasets.sharegpt.select.pool" in found[0]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("policies: {on: {kind: random}}", "policies: a name is read as True; put it in quotes"),
        ("models: {007: {source: hub, id: x}}", "models: a name is read as 7"),
        ("thresholds: {1.5: {at: 9tok, trigger: turn}}", "thresholds: a name is read as 1.5"),
        ("grid: {policies: [no]}", "grid.policies.0: False must be of type string; put it in"),
        ("grid: {policies: [1.0e+3]}", "1000.0 must be of type string; put it in quotes"),
        ("judges:", "judges: it is empty; give it a value or remove its line"),
        ("policies: {x: }", "policies.x: it is empty"),
        ("policies: {Mixed: {kind: knorm}}", "'mixed' and 'Mixed' differ in case only"),
        ("datasets: {..: {}}", "the name '..' may have"),
        ("models: {a/b: {}}", "the name 'a/b' may have"),
        ("models: {smollm2-135m: {device: gpu}}", "models.smollm2-135m.device: 'gpu'"),
    ],
)
def test_what_yaml_reads_otherwise_than_written_is_named(text: str, message: str) -> None:
    assert any(message in line for line in faults(merged(default(), yaml.safe_load(text))))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: 1\nb: 2\na: 3\n", "a is given twice, in lines 1 and 3"),
        ("policies:\n  x: {kind: random}\n  x: {kind: knorm}\n", "policies.x is given twice, in"),
        ("l:\n- {k: 1, k: 2}\n", "l.0.k is given twice, in lines 2 and 2"),
        ("7: a\n007: b\n", "007 is given twice, in lines 1 and 2"),
        ("'on': a\n\"on\": b\n", "on is given twice"),
        ('{"a": {"b": 1,\n"b": 1}}', "a.b is given twice, in lines 1 and 2"),
        ("a:\n\tb: 1\n", "line 2, column 1"),
    ],
)
def test_a_key_that_is_given_twice_is_an_error(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "my.yaml").write_text(text)
    with pytest.raises(UserError, match=message):
        read_settings([tmp_path / "my.yaml"])


def test_a_key_laid_over_an_anchors_is_no_duplicate(tmp_path: Path) -> None:
    (tmp_path / "my.yaml").write_text("a: &a {k: 1}\nb: {<<: *a, k: 2}\nc: *a\n")
    assert read_yaml(tmp_path / "my.yaml")["b"] == {"k": 2}


def test_every_shipped_yaml_file_has_each_key_once() -> None:
    files = [
        file
        for folder in ("config", "profiles", "envs")
        for file in (ROOT / folder).rglob("*.y*ml")
    ]
    assert len(files) > 8
    check_files(files)


def test_a_wrapped_policy_is_part_of_a_runs_parameters(tmp_path: Path) -> None:
    """By its kind or as an entry; with its defaults, and with the digest of its code."""
    specs = []
    for inner in ("knorm", {"kind": "knorm"}, "cur", {"kind": "cur", "sinks": 5}):
        config = default()
        config["policies"]["mixed"] = {"kind": "chunkkv", "policy": inner}
        config["grid"]["policies"] = ["baseline", "mixed"]
        settings = load_settings(config, "my.yaml")
        [key] = [key for key in run_keys(settings) if "/mixed/" in key][:1]
        specs.append(run_spec(settings, tmp_path, **RunKey.from_path(key)._asdict()))
    by_name, by_entry, cur, five = specs
    assert by_name["parameters"] == {"policy": {"kind": "knorm"}, "chunk": 20}
    assert by_name == by_entry
    assert cur["parameters"]["policy"]["sinks"] == 4 and five["parameters"]["policy"]["sinks"] == 5
    assert len({spec["policy_digest"] for spec in specs}) == 2


def test_a_healing_is_part_of_a_runs_parameters_and_its_absence_is_not(tmp_path: Path) -> None:
    config = default()
    config["policies"]["healed"] = {"kind": "streaming_llm", "healing": "ghost_slot"}
    settings = load_settings(config, "my.yaml")
    specs = {
        name: run_spec(settings, tmp_path, **RunKey.from_path(key)._asdict())
        for key in run_keys(settings)
        for name in ("healed", "streaming_llm")
        if f"/{name}/" in key
    }
    assert specs["healed"]["parameters"]["healing"] == "ghost_slot"
    assert "healing" not in specs["streaming_llm"]["parameters"]


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"kind": "streaming_llm", "healing": "gost_slot"}, "did you mean 'ghost_slot'"),
        ({"kind": "baseline", "healing": "merge"}, "healing"),
        (
            {"kind": "chunkkv", "policy": {"kind": "snapkv", "healing": "merge"}},
            "a wrapped policy heals nothing; move it to policies.healed",
        ),
    ],
)
def test_a_healing_that_cannot_act_is_refused(entry: dict[str, Any], message: str) -> None:
    config = default()
    config["policies"]["healed"] = entry
    with pytest.raises(UserError, match=message):
        load_settings(config, "my.yaml")
