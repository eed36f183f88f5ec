"""Loads a folder's tokenizer."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

#: The class that transformers saves a tokenizer as, unless its model has a class of its own.
GENERIC = "TokenizersBackend"


def load_tokenizer(directory: Path) -> Any:
    """What `AutoTokenizer` gives for a folder, without importing PyTorch where the class is named.

    Args:
        directory: tokenizer.json, tokenizer_config.json, and config.json if the class depends on
            the model.
    """
    file = Path(directory) / "tokenizer_config.json"
    stated = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    if stated.get("tokenizer_class") == GENERIC and "auto_map" not in stated:
        from transformers import PreTrainedTokenizerFast

        return PreTrainedTokenizerFast.from_pretrained(directory, trust_remote_code=False)
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(directory, trust_remote_code=False)
