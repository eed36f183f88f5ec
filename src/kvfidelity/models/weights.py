"""Loads weights only if they are all the model has, and no others."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from transformers import AutoModelForCausalLM
from transformers.utils import logging as hf_logging

from kvfidelity.bounded_json import read_json
from kvfidelity.errors import UserError

#: Buffers that old checkpoints hold and that follow from the config.
INVERSE_FREQUENCIES = re.compile(r"\.rotary_emb\.inv_freq$")
FLOATING = {"F32", "BF16", "F16"}
SHOWN = 5
#: Features of a head; models have 64 to 512.
MOST_HEAD = 2**16


def load_weights(directory: Path, dtype: torch.dtype, device: str = "cpu") -> Any:
    """A causal language model with exactly the directory's weights.

    Args:
        device: "meta" reads names and shapes only, without memory for the weights.

    Raises:
        UserError: a weight is missing, has another shape, is not a floating number, or is one
            that the model does not have; names them.
        OSError, ValueError, safetensors.SafetensorError: files that cannot be read.
    """
    headers = read_headers(directory)
    _check_sizes(directory, len(headers))
    if device != "meta":
        load_weights(directory, dtype, "meta")  # before memory is taken for what the config says
    level = hf_logging.get_verbosity()
    hf_logging.disable_progress_bar()
    hf_logging.set_verbosity(hf_logging.CRITICAL)  # its table of the same findings
    try:
        model, found = AutoModelForCausalLM.from_pretrained(
            directory,
            dtype=dtype,
            device_map=device if device == "meta" else None,
            use_safetensors=True,
            trust_remote_code=False,
            ignore_mismatched_sizes=True,
            output_loading_info=True,
        )
    except (SafetensorError, OSError, ValueError):
        raise
    except Exception as error:  # noqa: BLE001 - what config classes and modules raise on odd values
        reason = " ".join(str(error).split())[:200]
        raise UserError(
            f"the weights in {directory} do not fit its config.json ({reason}): fetch it again"
        ) from None
    finally:
        hf_logging.set_verbosity(level)
    # transformers leaves stored frequencies out of its report, whatever they are.
    frequencies = {key for key in headers if INVERSE_FREQUENCIES.search(key)}
    rotary = getattr(model.get_decoder(), "rotary_emb", None)
    odd = {key for key in frequencies if not _is_same_buffer(key, directory, rotary)}
    odd |= found["unexpected_keys"] - frequencies
    groups = {
        "missing": found["missing_keys"],
        "not in the model": odd,
        "of another shape": {entry[0] for entry in found["mismatched_keys"]},
        "not floating numbers": {key for key, kind in headers.items() if kind not in FLOATING},
    }
    if any(groups.values()):
        named = "; ".join(f"{what}: {_some(keys)}" for what, keys in groups.items() if keys)
        raise UserError(
            f"the weights in {directory} are not those of its config.json ({named}): use the "
            "complete checkpoint"
        )
    return model


def _check_sizes(directory: Path, tensors: int) -> None:
    """Refuse sizes that take time or memory before any shape is compared.

    Each layer has a weight, and the frequencies of a head are computed.
    """
    config = read_json(directory / "config.json")
    most = {"num_hidden_layers": (tensors, "layers than weights"), "head_dim": (MOST_HEAD, "")}
    for key, (limit, than) in most.items():
        found = config.get(key) if isinstance(config, dict) else None
        if isinstance(found, int) and found > limit:
            raise UserError(
                f"the weights in {directory} are not those of its config.json ({key} is {found}, "
                f"{f'more {than}' if than else f'at most {limit} is supported'}): use the complete "
                "checkpoint"
            )


def read_headers(directory: Path) -> dict[str, str]:
    """The number type of each tensor in a directory's safetensors, by name, such as F32.

    Reads those that transformers reads: model.safetensors, or the files of its index.

    Raises:
        UserError: there is no such file, or the index names one that is not there.
        OSError, ValueError: a file that cannot be read.
    """
    whole = directory / "model.safetensors"
    index = directory / "model.safetensors.index.json"
    names = {whole.name}
    placed = None
    if not whole.is_file() and index.is_file():
        placed = read_json(index)["weight_map"]
        names = set(placed.values())
    headers: dict[str, str] = {}
    for name in sorted(names):
        if not (directory / name).is_file():
            raise UserError(f"{directory} lacks {name}: its weights are incomplete")
        own = _header(directory / name)
        twice = headers.keys() & own.keys()
        if twice:
            raise UserError(f"{directory} holds weights twice: {_some(twice)}")
        headers |= own
    if placed is not None and set(placed) != set(headers):
        raise UserError(
            f"{index} and the files that it names disagree: {_some(set(placed) ^ set(headers))}"
        )
    return headers


def _header(file: Path) -> dict[str, str]:
    with safe_open(file, "pt") as tensors:
        return {key: tensors.get_slice(key).get_dtype() for key in tensors.keys()}  # noqa: SIM118


def _is_same_buffer(key: str, directory: Path, rotary: Any) -> bool:
    """Whether a checkpoint's inverse frequencies are those that the config gives."""
    if rotary is None:
        return False
    own = type(rotary)(config=rotary.config).inv_freq.float()
    for file in directory.glob("*.safetensors"):
        with safe_open(file, "pt") as tensors:
            if key in tensors.keys():  # noqa: SIM118
                stored = tensors.get_tensor(key).float()
                return stored.shape == own.shape and torch.allclose(stored, own, rtol=1e-2)
    return False


def _some(keys: Any) -> str:
    names = sorted(map(str, keys))
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more
