"""Likelihoods of given replies equal those of one Hugging Face forward."""

from __future__ import annotations

from typing import Any

import polars as pl
import pytest
import torch

from kvfidelity.decoding.engine import Engine
from kvfidelity.generation.likelihood import score_replies
from tests.models.tiny import tiny_llama, tiny_tokenizer

HISTORY = [{"user": "Is it far?", "assistant": "Not at all."}]


#: `half` begins `good`, `longer` goes on, `wrong` parts from it in the middle, `one` is one token.
REPLIES = {
    "good": "Turn left.",
    "half": "Turn",
    "longer": "Turn left. Now.",
    "wrong": "Turn right.",
    "other": "Bananas!",
    "one": "k",
    "no": "",
}


def texts() -> pl.DataFrame:
    rows: list[dict[str, Any]] = [
        {"item": item, "kind": kind, "history": HISTORY[:item], "prompt": "And then?"}
        | {"reply": reply}
        for item in range(2)
        for kind, reply in REPLIES.items()
    ]
    return pl.DataFrame(rows)


def expected(model: Any, tokenizer: Any, row: dict[str, Any]) -> float:
    messages = [
        {"role": role, "content": turn[key]}
        for turn in row["history"]
        for role, key in (("user", "user"), ("assistant", "assistant"))
    ]
    messages.append({"role": "user", "content": row["prompt"]})
    before = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    start = tokenizer(before, add_special_tokens=False)["input_ids"]
    reply = tokenizer(row["reply"], add_special_tokens=False)["input_ids"]
    with torch.inference_mode():
        logits = model(torch.tensor([start + reply])).logits[0]
    logs = logits[len(start) - 1 : -1].log_softmax(-1)
    return float(-logs[torch.arange(len(reply)), torch.tensor(reply)].mean())


def test_likelihoods_equal_one_full_forward() -> None:
    model, tokenizer = tiny_llama(), tiny_tokenizer()
    rows = texts().filter(pl.col("reply") != "").to_dicts()
    wanted = [expected(model, tokenizer, row) for row in rows]
    found = score_replies(Engine.from_model(model, tokenizer), texts())
    given = found.filter(pl.col("kind") != "no")
    assert given["reply_nll_baseline"].to_list() == pytest.approx(wanted, abs=1e-4)
    assert given["tokens"].to_list() == [10, 4, 15, 11, 8, 1] * 2
    assert found.filter(kind="no")["reply_nll_baseline"].to_list() == [None, None]


def test_other_replies_in_the_table_change_nothing() -> None:
    engine = Engine.from_model(tiny_llama(), tiny_tokenizer())
    whole = score_replies(engine, texts())
    for kind in ("good", "half", "wrong", "one"):
        alone = score_replies(engine, texts().filter(pl.col("kind") == kind))
        expected = whole.filter(pl.col("kind") == kind)["reply_nll_baseline"].to_list()
        assert alone["reply_nll_baseline"].to_list() == pytest.approx(expected, abs=1e-5)
