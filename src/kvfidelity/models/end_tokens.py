"""The tokens that end a model's reply, as its own files name them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from kvfidelity.bounded_json import read_json
from kvfidelity.errors import UserError

#: What a tokenizer takes as an id.
LARGEST = 2**31 - 1


def end_token_ids(directory: Path) -> frozenset[int]:
    """`eos_token_id` of generation_config.json, where that is silent of config.json.

    Either may be one id or a list: Llama 3 ends a message with another token than a text.

    Raises:
        UserError: a file that is not JSON, or an entry that is no id.
    """
    for name in ("generation_config.json", "config.json"):
        file = Path(directory) / name
        if not file.is_file():
            continue
        try:
            found: Any = read_json(file).get("eos_token_id")
        except (ValueError, AttributeError) as error:
            reason = " ".join(str(error).split())[:200]
            raise UserError(f"{file} is not a JSON object ({reason}): replace it") from None
        if found is None:
            continue
        ids = found if isinstance(found, list) else [found]
        if not all(type(token) is int and 0 <= token <= LARGEST for token in ids):
            shown = repr(found)[:100]
            raise UserError(f"{file}: eos_token_id is {shown}; write one token id or a list")
        return frozenset(ids)
    return frozenset()
