"""Converts GGUF, once, to a model directory that loads in a second."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging as hf_logging

from kvfidelity.atomic_files import give_usual_modes
from kvfidelity.errors import UserError
from kvfidelity.models.gguf_bounds import check_header
from kvfidelity.models.gguf_contents import check_conversion
from kvfidelity.models.gguf_reading import parsed_once
from kvfidelity.models.gguf_tokenizer import restore_digit_split


def convert_gguf(file: Path, directory: Path) -> None:
    """Write config, safetensors, tokenizer and chat template of a GGUF file into `directory`.

    Weights are dequantised to fp32: Q4_1 blocks have fp16 scales and offsets, so a weight is an
    fp16 times a 4-bit integer plus an fp16, which bf16 would round.

    Raises:
        UserError: transformers cannot read the file, its reason is passed on; or the file states
            what the model would not represent.
    """
    hf_logging.disable_progress_bar()
    with parsed_once():
        model, tokenizer = _read(file)
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    give_usual_modes(directory)


def _read(file: Path) -> tuple[Any, Any]:
    """The model, with all weights as fp32, and the tokenizer."""
    source = {"pretrained_model_name_or_path": str(file.parent), "gguf_file": file.name}
    try:
        check_header(file)
        tokenizer = AutoTokenizer.from_pretrained(**source, trust_remote_code=False)
        model, found = AutoModelForCausalLM.from_pretrained(
            **source, dtype=torch.float32, output_loading_info=True, trust_remote_code=False
        )
    except (OSError, ValueError, KeyError, IndexError, struct.error) as error:
        reason = str(error).split("\n")[0]
        raise UserError(f"{file.name} cannot be converted ({reason}): use another model") from None
    lost = sorted({*found["missing_keys"], *found["unexpected_keys"], *found["mismatched_keys"]})
    if lost:
        raise UserError(
            f"{file.name} cannot be converted: it does not fit its own description at "
            f"{', '.join(map(str, lost[:5]))}; use another model"
        )
    check_conversion(file, model)
    # The weights are dequantised now, but models with this config refuse to be saved.
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    model.hf_quantizer = None
    model.is_quantized = False
    restore_digit_split(tokenizer, file)
    return model, tokenizer
