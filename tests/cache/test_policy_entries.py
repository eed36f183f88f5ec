"""What a policy's entry or file gets wrong is refused by name, as is a ranking that cannot be
followed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from kvfidelity.cache.policies import build_policy, known_policies
from kvfidelity.errors import UserError
from tests.cache.policy_examples import (
    OWN,
    cache_of,
    evict,
    example,
)
from tests.cache.views import random_view

OWN_RANKS = {
    "return torch.zeros(view.slots - 1)": r"ranking is \[59\]; it must be \[60\] or \[3, 60\]",
    "return torch.zeros(2, 3, view.slots)": r"ranking is \[2, 3, 60\]; .* or \[3, 2, 60\]",
    "return torch.zeros(view.slots, dtype=torch.complex64)": "ranks by torch.complex64",
    "return view.rng.random(view.slots)": "ranks by ndarray",
    "return torch.full((view.slots,), torch.nan)": "its ranking holds NaN",
    "return view.attention('latest').mean((0, 1))": "cannot rank: .*needs_scores = True",
    "return view.window_attention(0).mean((0, 1))": "cannot rank: .*`query_window`",
}
OWN_KEEPS = {
    "return torch.tensor([1, 1, *range(2, 24)])": "sorted and without repeats",
    "return torch.arange(24).flip(0)": "sorted and without repeats",
    "return torch.arange(50, 74)": r"outside 0\.\.59",
    "return torch.arange(20)": r"its keep set is torch.int64 \[20\], not int64 \[24\]",
    "return torch.arange(24).float()": r"its keep set is torch.float32 \[24\]",
    "return list(range(24))": "its keep set is list",
}


@pytest.mark.parametrize(
    ("method", "body", "message"),
    [
        *[("priority", *item) for item in OWN_RANKS.items()],
        *[("keep", *item) for item in OWN_KEEPS.items()],
    ],
)
def test_a_ranking_that_cannot_be_followed_is_refused_by_the_policys_name(
    tmp_path: Path, llama: Any, method: str, body: str, message: str
) -> None:
    file = tmp_path / "mine.py"
    text = OWN if method == "priority" else OWN + "    def keep(self, view):\n        pass\n"
    last = "return -(view.token_index[0, 0] % self.step)" if method == "priority" else "pass\n"
    file.write_text("import torch\n" + text.replace(last, body))
    policy = build_policy("every_other", {}, [file])
    cache = cache_of(llama, example("streaming_llm"))
    with pytest.raises(UserError, match=rf"^policy every_other.*{message}"):
        evict(cache, policy)
    assert cache.size == 60


@pytest.mark.parametrize(
    ("kind", "parameters", "message"),
    [
        ("streaming_lm", {}, "did you mean 'streaming_llm'"),
        ("random", {"keep_ration": 0.5}, "did you mean 'keep_ratio'"),
        ("random", {"keep_ratio": 1.5}, "above 0 and at most 1"),
        ("random", {}, "keep_ratio"),
        ("block", {"which": "centre"}, "choose one of first, middle, last"),
        ("streaming_llm", {"sinks": -1}, "at least 0"),
        ("streaming_llm", {"sinks": 2.5}, "sinks is 2.5; it must be of type int"),
        ("snapkv", {"kernel": 4}, "kernel is 4; it must be an odd number"),
        ("snapkv", {"window": "32"}, "window is '32'; it must be of type int"),
        ("random", {"keep_ratio": float("nan")}, "keep_ratio is nan; it must be a finite number"),
        ("attention_top", {"age_normalised": 1}, "must be of type bool"),
        ("chunkkv", {"policy": "snapvk"}, r"^policy chunkkv, policy: .* did you mean 'snapkv'"),
        ("chunkkv", {"policy": {"kind": "cur", "sinks": -1}}, "policy cur: sinks is -1"),
        ("chunkkv", {"policy": {"chunk": 3}}, "it must be a kind, or have a `kind`"),
        ("chunkkv", {"policy": "baseline"}, "baseline ranks nothing"),
    ],
)
def test_a_mistaken_entry_is_refused_with_the_remedy(
    kind: str, parameters: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        build_policy(kind, parameters)


def test_a_policy_in_a_file_of_your_own_is_found(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text(OWN)
    assert build_policy("every_other", {"step": 3}, [file]).keep(random_view(30, 7)).numel() == 7


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "does not exist"),
        ("x = 1", "defines no policy"),
        ("import nowhere_to_be_found", "ModuleNotFoundError"),
        (OWN.replace("every_other", "random"), "exists already"),
    ],
)
def test_a_policy_file_that_cannot_be_used_is_named(
    tmp_path: Path, text: str | None, message: str
) -> None:
    file = tmp_path / "mine.py"
    if text is not None:
        file.write_text(text)
    with pytest.raises(UserError, match=rf"mine\.py.*{message}"):
        known_policies([file])
