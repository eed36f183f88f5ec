"""How much memory shared prefixes may take."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kvfidelity.sizes import MOST_SHARED_ON_CPU, parse_share, size_in_bytes

if TYPE_CHECKING:
    import torch


def prefix_bytes(text: str, device: torch.device) -> int:
    """`session.prefix_memory` in bytes: a size, or a share of the memory that is free now.

    Raises:
        UserError: neither.
    """
    share = parse_share(text)
    if share is None:
        return size_in_bytes(text)
    if device.type == "cuda":
        import torch

        free, _ = torch.cuda.mem_get_info(device)
        return int(share * free)
    import psutil

    return min(int(share * psutil.virtual_memory().available), MOST_SHARED_ON_CPU)
