"""The config and the code know the same formats and selections."""

from __future__ import annotations

import re
from dataclasses import fields
from typing import Any

import pytest
import yaml

from kvfidelity.dialogues.formats.registry import known_formats
from kvfidelity.dialogues.selection import Selection
from kvfidelity.errors import UserError
from kvfidelity.pipeline.settings import load_settings
from tests.dialogues.conftest import ROOT
from tests.dialogues.formats.test_files import OWN_FORMAT
from tests.workflow.project import CONFIG


def dataset_schema() -> Any:
    text = (ROOT / "src/kvfidelity/pipeline/schemas/config.schema.yaml").read_text(encoding="utf-8")
    return yaml.safe_load(text)["$defs"]["dataset"]["properties"]


def test_every_format_can_be_configured_and_no_other() -> None:
    for name in known_formats():
        assert load_settings(with_format(name))["datasets"]["own"]["format"] == name
    with pytest.raises(UserError, match=r"datasets.own.format: 'plan'.* did you mean 'plain'?"):
        load_settings(with_format("plan"))


def with_format(name: str) -> dict[str, Any]:
    entry = CONFIG["datasets"]["own"] | {"format": name}
    return CONFIG | {"datasets": {"own": entry}}


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
    assert len(blocks) == 5
    for block in blocks:
        settings = load_settings(default | yaml.safe_load(block), "datasets.md")
        assert all("select" in entry for entry in settings["datasets"].values())


def test_the_documented_format_is_the_tested_one() -> None:
    text = (ROOT / "config" / "datasets.md").read_text(encoding="utf-8")
    [block] = re.findall(r"```python\n# my_format.py.*?\n(.*?)```", text, flags=re.DOTALL)
    assert block == OWN_FORMAT
