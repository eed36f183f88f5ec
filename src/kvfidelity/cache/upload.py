"""Copies from the CPU to the device that do not wait for what the device still computes."""

from __future__ import annotations

import torch
from torch import Tensor


def upload(numbers: Tensor, device: torch.device) -> Tensor:
    """`numbers`, of any shape and dtype, on `device`."""
    return staged(numbers, device).to(device, non_blocking=True)


def staged(numbers: Tensor, device: torch.device) -> Tensor:
    """`numbers`, or a copy of them in pinned memory if they are on the CPU and `device` is a GPU:
    what a copy that does not wait may be made of.

    PyTorch keeps pinned memory until the copy is made. Of other memory no document says that it
    has been read when such a copy returns, and by then it may hold something else.
    """
    if device.type == "cuda" and numbers.device.type == "cpu":
        return numbers.pin_memory()
    return numbers
