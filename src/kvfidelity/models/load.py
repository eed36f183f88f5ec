"""Loading a converted model directory."""

from __future__ import annotations

import os
import sysconfig
from importlib.util import find_spec
from pathlib import Path
from shutil import which
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import AutoTokenizer
from transformers.utils import logging as hf_logging

from kvfidelity.bounded_json import broken_model_files, read_json
from kvfidelity.cache.architectures import check_architecture
from kvfidelity.errors import UserError
from kvfidelity.models.checksums import check_files
from kvfidelity.models.declared import check_declared
from kvfidelity.models.weights import load_weights

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def load_model(directory: Path, dtype: str, device: str) -> tuple[Any, Any]:
    """A causal language model in evaluation mode, and its tokenizer.

    Args:
        directory: config.json, safetensors and tokenizer files.
        dtype: float32, bfloat16 or float16.
        device: "cpu", "cuda", "cuda:1" or "auto".

    Raises:
        UserError: a missing or unsupported model, weights that are not those of its config, an
            unknown dtype, no such device.
    """
    config = Path(directory) / "config.json"
    if not config.is_file():
        raise UserError(f"{directory} holds no model (no config.json): fetch it again")
    for file, fault in broken_model_files(Path(directory)):
        raise _corrupt_file(file, fault)
    content = read_json(config)
    check_architecture(content)
    check_files(Path(directory))
    check_declared(content)
    if dtype not in DTYPES:
        raise UserError(f"dtype {dtype!r} is unknown; choose one of {', '.join(DTYPES)}")
    hf_logging.disable_progress_bar()
    torch_device = resolve_device(device)
    if torch_device.type == "cuda":
        check_kernels_compile()
        torch.cuda.set_device(torch_device.index or 0)
    tokenizer = _tokenizer(Path(directory))
    try:
        model = load_weights(Path(directory), DTYPES[dtype])
    except (SafetensorError, OSError, ValueError) as error:
        raise _corrupt_file(Path(directory), error) from None
    return model.to(torch_device).eval(), tokenizer


def replace_weights(model: Any, directory: Path) -> None:
    """Give a loaded model the weights of another one that differs in them alone.

    They are copied into the same memory, so what was compiled or captured for the model is valid.

    Args:
        model: of `load_model`. directory: see `checksums.differ_in_weights_alone`.

    Raises:
        UserError: files that are damaged, or weights that are not those of the config; the model
            keeps its own.
    """
    check_files(directory)
    try:
        loaded = dict(load_weights(directory, model.dtype).named_parameters())
    except (SafetensorError, OSError, ValueError) as error:
        raise _corrupt_file(directory, error) from None
    own = dict(model.named_parameters())
    assert own.keys() == loaded.keys(), "one config makes one set of parameters"
    with torch.no_grad():
        for name, parameter in own.items():
            parameter.copy_(loaded[name])


def _tokenizer(directory: Path) -> Any:
    try:
        return AutoTokenizer.from_pretrained(directory, trust_remote_code=False)
    except MemoryError:
        raise
    except Exception as error:  # noqa: BLE001 - what tokenizer classes raise on odd values
        raise _corrupt_file(directory, error) from None


def _corrupt_file(path: Path, error: Exception) -> UserError:
    reason = " ".join(str(error).split())[:200] or type(error).__name__
    return UserError(f"{path} is damaged ({reason}): delete the model's folder and run again")


def check_kernels_compile() -> None:
    """What Triton needs to compile the GPU kernels.

    Raises:
        UserError: no Triton, no C compiler, or no headers of Python.
    """
    missing = []
    if find_spec("triton") is None:
        missing.append("the package triton (PyTorch's CUDA builds for Linux bring it)")
    if not any(map(which, filter(None, (os.environ.get("CC"), "gcc", "clang", "cc")))):
        missing.append("a C compiler (gcc or clang, or CC set to one)")
    if not (Path(sysconfig.get_paths()["include"]) / "Python.h").is_file():
        missing.append("the headers of Python (Python.h, in python3-dev on Debian)")
    if missing:
        raise UserError(
            f"a GPU needs {' and '.join(missing)} to compile its kernels; install that, or set "
            "`device: cpu`"
        )


def resolve_device(device: str) -> torch.device:
    """ "auto" is a GPU if there is one.

    Raises:
        UserError: an unknown device, or a GPU that PyTorch does not see.
    """
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        parsed = torch.device(device)
    except RuntimeError:
        raise UserError(f"unknown device {device!r}; write auto, cpu, cuda or cuda:1") from None
    if parsed.type == "cuda" and (parsed.index or 0) >= torch.cuda.device_count():
        seen = torch.cuda.device_count() or "no"
        raise UserError(
            f"device {device!r}: PyTorch sees {seen} GPU here; set `device: auto` or `cpu`"
        )
    return parsed
