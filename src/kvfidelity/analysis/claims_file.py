"""The file of claims as YAML, checked against its schema, without heavy imports."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jsonschema

from kvfidelity.cache.positions import PositionMode
from kvfidelity.errors import UserError
from kvfidelity.records.arms import CONTROL_OF, NO_ARM
from kvfidelity.strict_yaml import read_yaml

SCHEMA_FILE = Path(__file__).with_name("claims.schema.yaml")


def read_claims_file(path: Path) -> dict[str, Any]:
    """Entries of claims by name.

    Raises:
        UserError: no such file, not YAML, a claim that is given twice, or not what
        src/kvfidelity/analysis/claims.schema.yaml describes.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path} does not exist: copy config/claims.yaml there")
    content = read_yaml(path)
    schema = read_yaml(SCHEMA_FILE)
    schema["$defs"]["rows"]["properties"]["arm"]["enum"] = [NO_ARM, *CONTROL_OF]
    schema["$defs"]["position_mode"] = {"pattern": f"^({'|'.join(PositionMode.patterns())})$"}
    wrong = jsonschema.exceptions.best_match(
        jsonschema.Draft202012Validator(schema).iter_errors(content)
    )
    if wrong is not None:
        raise UserError(f"{path}: {'.'.join(map(str, wrong.path)) or 'file'}: {wrong.message}")
    entries: dict[str, Any] = content
    return entries
