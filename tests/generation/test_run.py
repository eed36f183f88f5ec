"""One dialogue through one tiny random-weight model, from specification to rows."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import polars as pl
import pytest
import torch
from polars.testing import assert_frame_equal

from kvfidelity.decoding.engine import Engine
from kvfidelity.dialogues.pool import Dialogue, Turn
from kvfidelity.errors import UserError
from kvfidelity.generation.baseline_run import BaselineRun
from kvfidelity.generation.run import Records, run_dialogue
from kvfidelity.generation.spec import RunSpec
from kvfidelity.generation.timed_turn import run_timed_turn
from kvfidelity.prefix.cache import PrefixCache
from kvfidelity.records.artifacts import TIMINGS
from kvfidelity.records.grid import GENERATED
from tests.models.tiny import tiny_llama

WORDS = ["the", "river", "ran", "past", "the", "old", "mill", "and", "nobody", "asked", "12"]


def talk(turns: int) -> Dialogue:
    lines = [" ".join(WORDS[(turn + i) % 11] for i in range(6)) for turn in range(2 * turns)]
    pairs = zip(lines[::2], lines[1::2], strict=True)
    return Dialogue("000", "talk", tuple(Turn(user, assistant) for user, assistant in pairs))


BASE = RunSpec(
    model="tiny",
    dataset="talk",
    policy="p",
    kind="streaming_llm",
    positions="rerotated",
    threshold="t",
    at="250tok",
    target="100tok",
    max_new_tokens=5,
    score_every_run=True,
)
BASELINE = dataclasses.replace(BASE, kind="baseline", positions="original", at=None, target=None)


def run(
    engine: Engine, turns: int = 6, prefix_cache: PrefixCache | None = None, **changes: Any
) -> Any:
    return run_dialogue(engine, talk(turns), dataclasses.replace(BASE, **changes), prefix_cache)


def rounded(frame: pl.DataFrame) -> pl.DataFrame:
    return frame.drop(TIMINGS & set(frame.columns))


def test_a_run_makes_the_tables_that_the_workflow_lists() -> None:
    assert Records._fields == GENERATED


def test_reference_nll_of_the_baseline_is_hugging_faces(engine: Engine) -> None:
    """Teacher-forced turn by turn = one forward over the whole conversation, by another model."""
    turns = run_dialogue(engine, talk(4), BASELINE).turns
    whole = tiny_llama()
    whole.load_state_dict(
        {k.replace(".rotary.", "."): v for k, v in engine.model.state_dict().items()}
    )
    segments = engine.segmenter.segments(talk(4).turns)
    ids = [token for part in segments for token in (*part.prompt_ids, *part.reply_ids)]
    with torch.inference_mode():
        nll = torch.nn.functional.cross_entropy(
            whole(torch.tensor([ids])).logits[0, :-1], torch.tensor(ids[1:]), reduction="none"
        )
    index = 0
    for part, found in zip(segments, turns["reference_token_nll"], strict=True):
        start = index + len(part.prompt_ids) - 1
        index += len(part.prompt_ids) + len(part.reply_ids)
        expected = nll[start : start + len(part.reply_ids)]
        assert torch.tensor(found.to_list()).allclose(expected, atol=1e-4)


@pytest.mark.parametrize("replies", ["reference", "own"])
@pytest.mark.parametrize("kind", ["streaming_llm", "attention_top", "snapkv", "kvzip", "qfilter"])
@pytest.mark.parametrize("trigger", ["turn", "prompt", "step"])
def test_a_shared_prefix_changes_nothing(
    engine: Engine, replies: str, kind: str, trigger: str
) -> None:
    """Forked at the first eviction or computed alone: the same rows and the same log."""
    options = {"replies": replies, "kind": kind, "trigger": trigger, "turns": 5}
    shared, shared_log = run(engine, **options)
    alone, alone_log = run(engine, share_prefix=False, **options)
    assert shared["shared_prefix"].any() and not alone["shared_prefix"].any()
    drop = ["shared_prefix", "kl_baseline", "reply_nll_baseline"]
    tolerance = {"rel_tol": 1e-4, "abs_tol": 1e-5}
    assert_frame_equal(rounded(shared).drop(drop), rounded(alone).drop(drop), **tolerance)
    assert_frame_equal(rounded(shared_log), rounded(alone_log), **tolerance)
    close = {"rel_tol": 1e-3, "abs_tol": 1e-4}
    assert_frame_equal(
        shared.select("reply_nll_baseline"), alone.select("reply_nll_baseline"), **close
    )


def test_a_cached_prefix_gives_the_rows_of_a_computed_one(engine: Engine) -> None:
    prefix_cache = PrefixCache(1 << 30)
    first = run(engine, prefix_cache=prefix_cache).turns
    second = run(engine, prefix_cache=prefix_cache).turns
    fresh = run(engine).turns
    assert_frame_equal(rounded(first), rounded(second))
    assert_frame_equal(rounded(first), rounded(fresh))


def test_a_prefix_cache_without_room_keeps_nothing(engine: Engine) -> None:
    prefix_cache = PrefixCache(10)
    run(engine, prefix_cache=prefix_cache)
    assert not prefix_cache._runs


def test_rows_add_up(engine: Engine) -> None:
    turns, log = run(engine)
    assert turns["turn"].to_list() == list(range(6))
    assert (turns["tokens_seen_end"].diff().drop_nulls() > 0).all()
    lost = turns["tokens_seen_end"] - turns["slots_end"]
    assert lost.to_list() == turns["evicted_tokens"].cum_sum().to_list()
    assert turns["evictions"].sum() == log.height
    assert (turns["cache_bytes_end"] == turns["slots_end"] * turns["token_bytes"]).all()
    assert (turns["slots_start"][1:] == turns["slots_end"][:-1]).all()
    fed = turns["prompt_tokens"] + turns["reply_tokens"]
    assert (turns["tokens_seen_end"] - turns["tokens_seen_start"] == fed).all()
    evicting = turns.filter(pl.col("evictions") > 0)
    assert (evicting["slots_after_eviction"] == 100).all()
    assert (turns.filter(~pl.col("shared_prefix"))["kl_baseline"] > 0).all()


def test_own_replies_on_a_copy_do_not_change_the_dialogue(engine: Engine) -> None:
    """With `replies: reference` generating or not changes nothing that is fed."""
    spoken = run(engine).turns
    silent = run(engine, max_new_tokens=0).turns
    columns = ["slots_end", "tokens_seen_end", "reference_nll", "next_position", "kl_baseline"]
    assert_frame_equal(spoken.select(columns), silent.select(columns))
    assert spoken["reply"].is_not_null().all() and silent["reply"].is_null().all()
    assert set(silent["finish_reason"]) == {"not_generated"}
    late = run(engine, own_reply_turns=2).turns
    assert late["reply"].is_not_null().to_list() == [False] * 4 + [True] * 2


def test_own_replies_enter_the_cache_with_their_end_of_turn(engine: Engine) -> None:
    turns = run(engine, replies="own", at="9999tok", turns=3).turns
    row = turns.row(1, named=True)
    assert row["reply_tokens"] == row["reply_token_count"] + 1
    assert row["reference_nll"] is None
    assert row["reply_nll"] == pytest.approx(row["reply_nll_baseline"], rel=1e-4)


def test_a_likelihood_under_the_full_cache_is_not_the_managed_one(engine: Engine) -> None:
    for replies in ("reference", "own"):
        turns = run(engine, replies=replies, positions="stale").turns
        late = turns.filter(~pl.col("shared_prefix"))
        assert (late["reply_nll"] - late["reply_nll_baseline"]).abs().min() > 1e-4


def test_sampling_is_reproducible_by_its_seed(engine: Engine) -> None:
    options = {"temperature": 1.0, "top_p": 0.9, "replies": "own", "turns": 3}
    replies = [run(engine, seed=seed, **options)[0]["reply"].to_list() for seed in (1, 1, 2)]
    assert replies[0] == replies[1] != replies[2]


@pytest.mark.parametrize("trigger", ["paper", "step"])
def test_a_reply_fed_in_chunks_evicts_as_token_by_token(
    engine: Engine, trigger: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    options: dict[str, Any] = {"trigger": trigger, "kind": "attention_top", "turns": 4}
    options |= {"parameters": {"keep_ratio": 0.9}} if trigger == "paper" else {}
    target = None if trigger == "paper" else "120tok"
    chunked, chunked_log = run(engine, at="150tok", target=target, **options)
    monkeypatch.setattr(
        "kvfidelity.cache.evictor.Evictor.steps_without_eviction", lambda self, cache: 1
    )
    single, single_log = run(engine, at="150tok", target=target, **options)
    assert chunked_log.height == single_log.height >= 2
    columns = [
        "turn",
        "step",
        "tokens_seen",
        "slots_before",
        "slots_after",
        "slot_spans",
        "position_spans",
    ]
    assert_frame_equal(chunked_log.select(columns), single_log.select(columns))
    assert_frame_equal(
        chunked.select("reference_nll"), single.select("reference_nll"), rel_tol=1e-4
    )


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory"),
        RuntimeError("DefaultCPUAllocator: not enough memory"),
    ],
)
def test_running_out_of_memory_is_a_result(
    engine: Engine, monkeypatch: Any, error: RuntimeError
) -> None:
    from kvfidelity.generation import timed_turn as module

    calls = []

    def limited(*args: Any) -> Any:
        calls.append(1)
        if len(calls) > 3:
            raise error
        return real(*args)

    real = module.run_turn
    monkeypatch.setattr(module, "run_turn", limited)
    turns = run_dialogue(engine, talk(6), BASELINE).turns
    assert turns["finish_reason"].to_list()[-1] == "out_of_memory"
    assert turns.height == 4 and turns["reference_nll"].null_count() == 1


def test_a_specification_survives_json() -> None:
    assert RunSpec.from_json(BASE.to_json()) == BASE
    with pytest.raises(UserError, match="unexpected keyword"):
        RunSpec.from_json('{"modle": 1}')


def test_a_run_that_is_impossible_is_a_user_error(engine: Engine) -> None:
    with pytest.raises(UserError, match="no turn"):
        run_dialogue(engine, Dialogue("000", "mute", ()), BASE)
    with pytest.raises(UserError, match="needs max_new_tokens"):
        dataclasses.replace(BASE, replies="own", max_new_tokens=0)
    with pytest.raises(UserError, match="is no size"):
        run(engine, at="600 MBs")
    with pytest.raises(UserError, match="query_window is 200"):
        run(engine, kind="snapkv", parameters={"window": 200})


def test_a_run_of_own_replies_holds_no_second_cache_before_its_end(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The copies for the likelihood of its replies would be as large as its whole history."""
    order: list[str] = []

    def noted(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            order.append(name)
            return function(*arguments, **options)

        return call

    place = "kvfidelity.generation.run.run_timed_turn"
    monkeypatch.setattr(place, noted("turn", run_timed_turn))
    monkeypatch.setattr(BaselineRun, "fork_at", noted("copy", BaselineRun.fork_at))
    spec = dataclasses.replace(BASE, replies="own")
    turns = run_dialogue(engine, talk(8), spec).turns
    assert order.count("turn") >= 2 and order == sorted(order, reverse=True)
    replied = turns.filter(pl.col("reply_token_count") > 0)
    assert len(replied) > 3 and replied["reply_nll_baseline"].null_count() == 0
