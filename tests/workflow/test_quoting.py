"""No value of a configuration is seen by a shell as anything but text."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest
from snakemake.utils import format as snakemake_format

ROOT = Path(__file__).parents[2]
RULE = re.compile(r"^(?:rule|checkpoint) (\w+):\n(.*?)(?=^\S|\Z)", re.M | re.S)
SHELL = re.compile(r"^    shell:\n((?:^ {8}.*\n?)+)", re.M)
FIELD = re.compile(r"\{([^{}]+)\}")
#: Numbers that Snakemake itself makes.
NUMBERS = {"threads"}


def commands() -> dict[str, str]:
    found = {}
    for file in [ROOT / "Snakefile", *sorted((ROOT / "workflow/rules").glob("*.smk"))]:
        for name, body in RULE.findall(file.read_text()):
            for command in SHELL.findall(body):
                found[name] = ast.literal_eval(f"({command})")
    return found


def unquoted(command: str) -> list[str]:
    return [f for f in FIELD.findall(command) if f not in NUMBERS and not f.endswith(":q")]


def test_every_rule_is_looked_at() -> None:
    texts = [file.read_text() for file in (ROOT / "workflow/rules").glob("*.smk")]
    assert len(commands()) == sum(text.count("    shell:\n") for text in texts) > 15


@pytest.mark.parametrize("rule", sorted(commands()))
def test_every_value_in_a_command_is_quoted(rule: str) -> None:
    assert unquoted(commands()[rule]) == []


def test_an_unquoted_value_is_found() -> None:
    assert unquoted("a {params.device} {input:q} {threads}") == ["params.device"]


def test_quoting_keeps_a_value_one_word() -> None:
    for value in ("cpu$(touch x)", "a;b", "`id`", "x\ny", "it's"):
        import shlex

        assert shlex.split(snakemake_format("{value:q}", value=value)) == [value]
