"""JSON Schema as its standard has it: a pattern's `$` is the end of the text and nothing else."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

import jsonschema


def _pattern(
    validator: Any, pattern: str, instance: Any, schema: Mapping[str, Any]
) -> Iterator[jsonschema.ValidationError]:
    """In Python `$` also matches before a line break at the end, which a shell would run past."""
    if isinstance(instance, str) and not re.search(pattern.replace("$", r"\Z"), instance):
        yield jsonschema.ValidationError(f"{instance!r} does not match {pattern!r}")


#: `extend` has no types in types-jsonschema.
_extend: Any = jsonschema.validators.extend
#: Draft 2020-12.
SchemaValidator: Any = _extend(jsonschema.Draft202012Validator, {"pattern": _pattern})
