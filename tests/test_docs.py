"""What the pages name is there: links, paths, make targets, config keys, rules."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from kvfidelity.pipeline.invocation import FILE as INVOCATION
from kvfidelity.pipeline.run_time import FILE as RUN_TIME
from kvfidelity.pipeline.setting_schemas import config_schema

ROOT = Path(__file__).parents[1]
PAGES = [
    *sorted(ROOT.glob("*.md")),
    *sorted((ROOT / "docs").glob("*.md")),
    ROOT / "benchmarks/README.md",
    ROOT / "config/README.md",
    ROOT / "config/datasets.md",
    ROOT / "resources/dialogues/README.md",
]
#: Folders of the repository whose paths in a page must exist; what is made later is elsewhere.
FOLDERS = (
    *("src", "workflow", "config", "docs", "tests", "benchmarks", "profiles", "envs", "notebooks"),
    *("resources/rubrics", "resources/dialogues"),
)
PATH = re.compile(rf"(?<![\w/.-])(?:{'|'.join(FOLDERS)})/[\w./-]*")

pages = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))


def prose(page: Path) -> str:
    """The page without links to the web, whose addresses can look like paths."""
    return re.sub(r"https?://\S+", "", page.read_text(encoding="utf-8"))


@pages
def test_every_link_leads_to_a_file_of_the_repository(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", prose(page)):
        found = (page.parent / target).resolve()
        assert found.is_relative_to(ROOT) and found.exists(), target


@pages
def test_every_path_of_the_repository_exists(page: Path) -> None:
    for found in PATH.finditer(prose(page)):
        path = found[0].rstrip(".")
        assert (ROOT / path).exists(), path


def targets() -> set[str]:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    return set(re.findall(r"^([a-z]+):", makefile, flags=re.MULTILINE))


@pages
def test_every_make_target_exists(page: Path) -> None:
    named = re.findall(r"(?:`|^)make ([a-z]+)", prose(page), flags=re.MULTILINE)
    assert set(named) <= targets()


def rules() -> set[str]:
    files = [ROOT / "Snakefile", *(ROOT / "workflow/rules").glob("*.smk")]
    text = "\n".join(file.read_text(encoding="utf-8") for file in files)
    return set(re.findall(r"^ *rule (\w+):", text, flags=re.MULTILINE))


@pages
def test_every_rule_of_a_command_exists(page: Path) -> None:
    command = r"^snakemake --cores \d+(?: -[^#\n]*)? (\w+) *(?:#.*)?$"
    named = re.findall(command, prose(page), flags=re.MULTILINE)
    named += re.findall(r"`snakemake\s+([a-z_]+)`", prose(page))
    assert set(named) <= rules()


def test_every_rule_of_the_drawing_exists() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    [drawing] = re.findall(r"```mermaid\n(.*?)```", readme, flags=re.DOTALL)
    for label in re.findall(r'\["?([^"\]]+)"?\]', drawing):
        for name in label.split("<br>")[0].split(", "):
            assert name in rules(), name


@pages
def test_every_folder_of_results_is_written_by_the_workflow(page: Path) -> None:
    files = [*(ROOT / "workflow").rglob("*.smk"), *(ROOT / "workflow/scripts").glob("*.py")]
    written = "\n".join(file.read_text(encoding="utf-8") for file in [ROOT / "Makefile", *files])
    for folder in re.findall(r"(?<![\w/-])results/([\w.-]+)", prose(page)):
        name = folder.rstrip(".")
        if name in (INVOCATION, RUN_TIME):  # written where the workflow starts
            continue
        assert f"<results>/{name}" in written or f'artifacts("{name}"' in written, name


def keys(schema: Any) -> Iterator[str]:
    """Names of all properties of a JSON schema, at any depth."""
    if isinstance(schema, dict):
        yield from schema.get("properties", {})
        for value in schema.values():
            yield from keys(value)
    elif isinstance(schema, list):
        for value in schema:
            yield from keys(value)


@pages
def test_every_config_key_exists(page: Path) -> None:
    """`session.batch_size`: each part below a section of the configuration."""
    sections, known = set(config_schema()["properties"]), set(keys(config_schema()))
    for dotted in re.findall(r"`([a-z_]+(?:\.[a-z_]+)+)", prose(page)):
        section, *rest = dotted.split(".")
        if section in sections and rest[-1] not in ("yaml", "md", "py"):
            assert set(rest) <= known, dotted
