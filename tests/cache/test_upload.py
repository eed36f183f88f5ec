"""Copies to the device that do not wait: what arrives was there when they were asked for."""

from __future__ import annotations

import pytest
import torch

from kvfidelity.cache.upload import staged, upload

CPU = torch.device("cpu")


def test_nothing_is_copied_on_a_cpu() -> None:
    numbers = torch.arange(5)
    assert staged(numbers, CPU) is numbers and upload(numbers, CPU) is numbers


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("count", [1, 10, 1_000, 20_000, 1_000_000])
def test_what_is_written_after_a_copy_was_asked_for_does_not_arrive(count: int) -> None:
    """The device is busy when the copies are asked for; their sources then change or are freed."""
    device = torch.device("cuda")
    changed = torch.zeros(count, dtype=torch.int64)
    torch.cuda._sleep(200_000_000)  # cycles: about a tenth of a second
    whole = upload(changed, device)
    changed.fill_(1)
    others = [upload(torch.full((count,), number), device) for number in range(20)]
    assert not whole.any()
    assert all(bool((other == number).all()) for number, other in enumerate(others))
