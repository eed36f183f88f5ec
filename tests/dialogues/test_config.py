"""The config schema and the code know the same forms and selections."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import yaml
from kvfidelity.dialogues.selection import Selection
from kvfidelity.dialogues.sources.registry import known_forms

from tests.dialogues.conftest import ROOT


def dataset_schema() -> Any:
    text = (ROOT / "workflow" / "schemas" / "config.schema.yaml").read_text(encoding="utf-8")
    return yaml.safe_load(text)["$defs"]["dataset"]["properties"]


def test_every_form_can_be_configured() -> None:
    assert dataset_schema()["format"]["enum"] == list(known_forms())


def test_every_selection_can_be_configured_and_has_its_default() -> None:
    schema = dataset_schema()["select"]["properties"]
    defaults = {item.name: item.default for item in fields(Selection)}
    assert {name: entry["default"] for name, entry in schema.items()} == defaults
