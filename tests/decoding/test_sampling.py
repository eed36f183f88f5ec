"""Choosing a token from logits."""

from __future__ import annotations

import torch

from kvfidelity.decoding.sampling import sample_tokens, uniform_draws


def pick(logits: torch.Tensor, temperature: float, top_p: float, uniform: list[float]) -> list[int]:
    count = len(uniform)
    settings = [[temperature] * count, [top_p] * count, uniform]
    rows = [torch.tensor(row, dtype=torch.float64) for row in settings]
    return sample_tokens(logits.expand(count, -1), *rows).tolist()


def test_temperature_zero_takes_the_best() -> None:
    assert pick(torch.tensor([0.1, 3.0, 2.9]), 0, 1, [0.0, 0.999]) == [1, 1]


def test_a_uniform_number_falls_into_the_cumulative_probabilities_of_the_likeliest_first() -> None:
    logits = torch.tensor([0.2, 0.5, 0.3]).log()
    assert pick(logits, 1, 1, [0.0, 0.49, 0.51, 0.79, 0.81, 0.999999]) == [1, 1, 2, 2, 0, 0]


def test_top_p_keeps_the_smallest_set_with_that_probability() -> None:
    logits = torch.tensor([0.2, 0.5, 0.3]).log()
    assert pick(logits, 1, 0.6, [0.0, 0.62, 0.63, 0.999]) == [1, 1, 2, 2]
    assert pick(logits, 1, 0.0001, [0.0, 0.999]) == [1, 1]


def test_frequencies_are_the_probabilities() -> None:
    logits = torch.tensor([0.2, 0.5, 0.3]).log()
    counts = torch.tensor(pick(logits, 1, 1, uniform_draws(4000, 0).tolist())).bincount()
    assert torch.allclose(counts / 4000, torch.tensor([0.2, 0.5, 0.3]), atol=0.03)
