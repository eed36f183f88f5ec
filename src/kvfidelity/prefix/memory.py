"""How much memory shared prefixes may take."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kvfidelity.sizes import parse_share, size_in_bytes

if TYPE_CHECKING:
    import torch

#: Most that a share means on a CPU: a job tells its scheduler how much memory it needs.
MOST_SHARED_ON_CPU = 2 * 2**30


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


def most_host_bytes(text: str) -> int:
    """Most bytes of the host's memory that `session.prefix_memory` may mean.

    Raises:
        UserError: see `prefix_bytes`.
    """
    return MOST_SHARED_ON_CPU if parse_share(text) is not None else size_in_bytes(text)
