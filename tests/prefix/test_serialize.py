"""A baseline loaded from disk equals the one that was stored, bit for bit."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from polars.testing import assert_frame_equal
from safetensors.torch import load_file

from kvfidelity.cache.scores import AttentionScores, ScoreHistory
from kvfidelity.decoding.engine import Engine
from kvfidelity.generation.baseline_run import Checkpoint
from kvfidelity.generation.run import run_dialogue
from tests.generation.test_recall import ASKED, dialogue_with_evidence
from tests.generation.test_run import BASE, BASELINE
from tests.models.tiny import tiny_llama, tiny_tokenizer
from tests.prefix.runs import (
    assert_same_records,
    baseline_run,
    disk_cache,
    run_in_new_process,
    the_file,
)


@pytest.mark.parametrize("recall", [{}, ASKED | {"after_turns": (1, 3, 5), "max_new_tokens": 3}])
@pytest.mark.parametrize("replies", ["reference", "own"])
@pytest.mark.parametrize("scored", [True, False])
@pytest.mark.parametrize("kind", ["streaming_llm", "attention_top", "snapkv"])
@pytest.mark.parametrize("positions", ["rerotated", "stale"])
def test_a_run_from_the_disk_equals_the_run_that_computed(
    engine: Engine,
    tmp_path: Path,
    kind: str,
    scored: bool,
    replies: str,
    recall: dict[str, Any],
    positions: str,
) -> None:
    spec = dataclasses.replace(
        BASE,
        kind=kind,
        score_every_run=scored,
        replies=replies,
        recall=recall,
        positions=positions,
        at="150tok",
    )
    computed = run_in_new_process(engine, spec, tmp_path)
    loaded = run_in_new_process(engine, spec, tmp_path, computes=False)
    assert_same_records(computed, loaded)
    assert computed.turns["shared_prefix"].any() and computed.evictions.height


def test_timings_and_replies_of_the_baseline_are_loaded(
    engine: Engine,
    tmp_path: Path,
) -> None:
    for replies in ("reference", "own"):
        spec = dataclasses.replace(BASELINE, replies=replies, temperature=1.0, seed=3)
        computed = run_in_new_process(engine, spec, tmp_path)
        loaded = run_in_new_process(engine, spec, tmp_path, computes=False)
        assert_frame_equal(computed.turns, loaded.turns, check_exact=True)


def test_policies_share_what_is_on_disk(
    engine: Engine,
    tmp_path: Path,
) -> None:
    """One process computes the baseline; a policy in a later process starts from it."""
    run_in_new_process(engine, BASELINE, tmp_path)
    late = run_in_new_process(engine, BASE, tmp_path, computes=False)
    assert_same_records(late, run_dialogue(engine, dialogue_with_evidence(), BASE))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", ["streaming_llm", "snapkv"])
def test_every_bit_of_a_baseline_is_loaded(dtype: torch.dtype, kind: str, tmp_path: Path) -> None:
    engine = Engine.from_model(tiny_llama().to(dtype), tiny_tokenizer())
    # Prompts fed in chunks: a key's rotation must not depend on what it was rotated with.
    engine = dataclasses.replace(engine, chunk=13)
    run = baseline_run(engine, dataclasses.replace(BASE, kind=kind))
    disk = disk_cache(engine, tmp_path)
    disk.store("key", run)
    found = disk.load("key")
    assert found is not None
    for mine, theirs in zip(run.cache.layers, found.cache.layers, strict=True):
        for name in ("live_keys", "live_values", "rotated_keys"):
            assert_same_bits(getattr(mine, name), getattr(theirs, name))
    assert_same_scores(run.cache.scores, found.cache.scores)
    for name in ("position", "token_index"):
        assert torch.equal(
            getattr(run.cache.slot_table, name), getattr(found.cache.slot_table, name)
        )
    for name in ("tokens_seen", "next_position", "evictions", "mode"):
        assert getattr(run.cache.slot_table, name) == getattr(found.cache.slot_table, name)
    assert (run.cache.scaling, run.cache.query_window) == (
        found.cache.scaling,
        found.cache.query_window,
    )
    assert_same_checkpoint(
        Checkpoint(0, 0, None, run.cache.recent_queries),
        Checkpoint(0, 0, None, found.cache.recent_queries),
    )
    assert run.end is not None and found.end is not None
    for checkpoint, other in zip([*run.starts, run.end], [*found.starts, found.end], strict=True):
        assert_same_checkpoint(checkpoint, other)
    assert run.prompts == found.prompts and not found.out_of_memory
    for outcome, again in zip(run.outcomes, found.outcomes, strict=True):
        for field in dataclasses.fields(outcome):
            value, same = getattr(outcome, field.name), getattr(again, field.name)
            if isinstance(value, torch.Tensor):
                assert_same_bits(value, same)
            else:
                assert value == same and type(value) is type(same), field.name


def assert_same_bits(one: torch.Tensor, other: torch.Tensor) -> None:
    assert (one.dtype, one.shape, one.device) == (other.dtype, other.shape, other.device)
    bits = [tensor.contiguous().view(torch.uint8) for tensor in (one, other)]
    assert torch.equal(*bits)


def assert_same_scores(one: AttentionScores | None, other: AttentionScores | None) -> None:
    if one is None or other is None:
        assert one is other
        return
    assert (one.available, one.heads, one._slots) == (other.available, other.heads, other._slots)
    for history in ScoreHistory if one.available else ():
        assert_same_bits(one.rows(history), other.rows(history))


def assert_same_checkpoint(one: Checkpoint, other: Checkpoint) -> None:
    assert (one.slots, one.step) == (other.slots, other.step)
    assert_same_scores(one.scores, other.scores)
    recent, again = one.recent_queries, other.recent_queries
    if recent is None or again is None:
        assert recent is again
        return
    assert (len(recent), recent.window) == (len(again), again.window)
    queries, same = recent.latest(), again.latest()
    if queries is None or same is None:
        assert queries is same
    else:
        assert_same_bits(queries, same)


def test_the_file_is_read_by_safetensors_too(engine: Engine, tmp_path: Path) -> None:
    run = baseline_run(engine)
    disk_cache(engine, tmp_path).store("key", run)
    found = load_file(the_file(tmp_path))
    assert torch.equal(found["keys.1"], run.cache.layers[1].live_keys)
    assert torch.equal(found["predicted.4"], run.outcomes[4].predicted)
