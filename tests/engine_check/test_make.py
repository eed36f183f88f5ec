"""What makes a probe set, and what it refuses; tests/workflow/test_engines.py runs the rule."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from kvfidelity.decoding.engine import Engine
from kvfidelity.engine_check.make import make_probe_set, read_dialogues
from kvfidelity.engine_check.probes import ProbeSet
from kvfidelity.errors import UserError
from tests.engine_check.conftest import SIZES
from tests.engine_check.simulated import at_precision

ROOT = Path(__file__).parents[2]
DIALOGUES = ROOT / "resources/dialogues/own.jsonl"


def test_probes_of_one_conversation_share_their_tokens(probe_set: ProbeSet) -> None:
    for probe in probe_set:
        whole = probe_set.no_eviction(probe)
        assert whole is not None
        assert probe.tokens == whole.tokens[: len(probe.tokens)]
        for eviction in probe.evictions:
            assert len({sum(b - a for a, b in ranges) for ranges in eviction.keep}) == 1


def test_expected_values_of_low_precision_are_refused(
    engine: Engine, dialogues: list[list[int]]
) -> None:
    sizes = replace(SIZES, long=0)
    with pytest.raises(UserError, match=r"in float32 on a CPU, not in torch\.bfloat16"):
        make_probe_set(at_precision(engine, "bfloat16"), dialogues, sizes, {})
    with pytest.raises(UserError, match="no dialogue"):
        make_probe_set(engine, [[]], sizes, {})


def test_dialogues_are_read_by_the_chat_template(engine: Engine, tmp_path: Path) -> None:
    first = read_dialogues(engine, DIALOGUES)[0]
    text = engine.tokenizer.decode(first)
    assert text.startswith("<|im_start|>user\nI want to plan a five-day cycling trip")
    assert torch.tensor(first).max() < engine.model.config.vocab_size
    other = tmp_path / "other.jsonl"
    other.write_text('{"messages": []}\n', encoding="utf-8")
    with pytest.raises(UserError, match="line 1: no `conversations`"):
        read_dialogues(engine, other)
