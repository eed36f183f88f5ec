"""Loads a folder's tokenizer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from kvfidelity.bounded_json import read_json
from kvfidelity.errors import UserError

#: The class that transformers saves a tokenizer as, unless its model has a class of its own.
GENERIC = "TokenizersBackend"


def load_tokenizer(directory: Path) -> Any:
    """What `AutoTokenizer` gives for a folder, without importing PyTorch where the class is named.

    Args:
        directory: tokenizer.json, tokenizer_config.json, and config.json if the class depends on
            the model.

    Raises:
        UserError: tokenizer_config.json is broken.
    """
    file = Path(directory) / "tokenizer_config.json"
    try:
        stated = read_json(file) if file.is_file() else {}
        if not isinstance(stated, dict):
            raise ValueError("it is no object")
    except ValueError as error:
        raise UserError(f"{file} is broken ({error}); fetch the model again") from None
    if stated.get("tokenizer_class") == GENERIC and "auto_map" not in stated:
        from transformers import PreTrainedTokenizerFast

        return PreTrainedTokenizerFast.from_pretrained(directory, trust_remote_code=False)
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(directory, trust_remote_code=False)
