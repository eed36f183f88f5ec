"""The config schema and the code know the same forms and selections."""

from __future__ import annotations

import re
from dataclasses import fields
from typing import Any

import yaml

from kvfidelity.dialogues.formats.registry import known_formats
from kvfidelity.dialogues.selection import Selection
from kvfidelity.pipeline.settings import load_settings
from tests.dialogues.conftest import ROOT


def dataset_schema() -> Any:
    text = (ROOT / "src/kvfidelity/pipeline/schemas/config.schema.yaml").read_text(encoding="utf-8")
    return yaml.safe_load(text)["$defs"]["dataset"]["properties"]


def test_every_format_can_be_configured() -> None:
    assert dataset_schema()["format"]["enum"] == list(known_formats())


def test_every_selection_can_be_configured_and_has_its_default() -> None:
    schema = dataset_schema()["select"]["properties"]
    defaults = {item.name: item.default for item in fields(Selection)}
    assert {name: entry["default"] for name, entry in schema.items()} == defaults


def test_every_format_is_documented_with_where_it_is_published() -> None:
    text = (ROOT / "config" / "datasets.md").read_text(encoding="utf-8")
    rows = {line.split("`")[1]: line for line in text.splitlines() if line.startswith("| `")}
    for name, format_ in known_formats().items():
        assert (format_.published or "") in rows.pop(name, "")
    assert set(rows) == {"format"}


def test_every_documented_entry_is_valid() -> None:
    text = (ROOT / "config" / "datasets.md").read_text(encoding="utf-8")
    default = yaml.safe_load((ROOT / "config" / "config.yaml").read_text(encoding="utf-8"))
    blocks = re.findall(r"```yaml\n(.*?)```", text, flags=re.DOTALL)
    assert len(blocks) == 4
    for block in blocks:
        settings = load_settings(default | yaml.safe_load(block), "datasets.md")
        assert all("select" in entry for entry in settings["datasets"].values())
