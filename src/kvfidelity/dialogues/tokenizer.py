"""Loads a folder's tokenizer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from kvfidelity.bounded_json import broken_model_files, read_json
from kvfidelity.errors import UserError

#: The class that transformers saves a tokenizer as, unless its model has a class of its own.
GENERIC = "TokenizersBackend"


def load_tokenizer(directory: Path) -> Any:
    """What `AutoTokenizer` gives for a folder, without importing PyTorch where the class is named.

    Args:
        directory: tokenizer.json, tokenizer_config.json, and config.json if the class depends on
            the model.

    Raises:
        UserError: a JSON file is broken, or transformers makes no tokenizer of them.
    """
    directory = Path(directory)
    for broken, fault in broken_model_files(directory):
        raise UserError(f"{broken} is broken ({fault}); fetch the model again")
    file = directory / "tokenizer_config.json"
    stated = read_json(file) if file.is_file() else {}
    if not isinstance(stated, dict):
        raise UserError(f"{file} is broken (it is no object); fetch the model again")
    try:
        tokenizer = _loaded(directory, stated)
        tokenizer("Hello")  # some values are read first here
        return tokenizer
    except MemoryError:
        raise
    except Exception as error:  # noqa: BLE001 - what tokenizer classes raise on odd values
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise UserError(
            f"the tokenizer in {directory} cannot be loaded ({reason}); fetch the model again"
        ) from None


def _loaded(directory: Path, stated: dict[str, Any]) -> Any:
    if stated.get("tokenizer_class") == GENERIC and "auto_map" not in stated:
        from transformers import PreTrainedTokenizerFast

        return PreTrainedTokenizerFast.from_pretrained(directory, trust_remote_code=False)
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(directory, trust_remote_code=False)
