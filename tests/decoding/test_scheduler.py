"""Runs decoded together give the same records as runs alone."""

from __future__ import annotations

import copy
import dataclasses
import gc
import weakref
from typing import Any

import pytest
import torch
from polars.testing import assert_frame_equal

from kvfidelity.cache.evictor import EvictionSchedule, Evictor, Trigger
from kvfidelity.cache.policies import build_policy
from kvfidelity.decoding.engine import Engine
from kvfidelity.decoding.generate import generate
from kvfidelity.decoding.sampling import Sampling
from kvfidelity.decoding.scheduler import BatchScheduler, RestartError, run_batch
from kvfidelity.decoding.sequence import Reply
from kvfidelity.generation.run import run_dialogue
from kvfidelity.generation.spec import RunSpec
from kvfidelity.prefix.cache import PrefixCache
from kvfidelity.records.artifacts import TIMINGS
from tests.generation.test_run import BASE, talk

#: Policies with and without scores, recent queries, per-layer and per-head keep sets; all modes.
CELLS: list[dict[str, Any]] = [
    {"kind": "baseline", "positions": "original", "at": None, "target": None},
    {"kind": "streaming_llm", "positions": "stale", "trigger": "step"},
    {"kind": "attention_top", "positions": "rerotated", "trigger": "paper", "target": None},
    {"kind": "h2o", "positions": "original", "trigger": "step"},
    {"kind": "tova", "positions": "rerotated", "trigger": "step"},
    {"kind": "snapkv", "positions": "stale", "trigger": "prompt"},
]
SCORED = {"attention_top", "h2o"}


def spec(**changes: Any) -> RunSpec:
    base = dataclasses.replace(BASE, at="120tok", target="80tok", score_every_run=False)
    return dataclasses.replace(base, replies="own", max_new_tokens=12, **changes)


@pytest.mark.parametrize("batch_size", [4])
def test_runs_together_give_the_records_of_runs_alone(engine: Engine, batch_size: int) -> None:
    """Also with more runs than batch_size, and with runs of different lengths that end early."""
    specs = [spec(**cell) for cell in CELLS]
    talks = [talk(3 + index % 3) for index in range(len(specs))]
    pairs = list(zip(talks, specs, strict=True))
    alone = [run_dialogue(engine, *pair) for pair in pairs]
    together = run_batch(
        engine, [lambda at, pair=pair: run_dialogue(at, *pair) for pair in pairs], batch_size
    )
    for one, other in zip(alone, together, strict=True):
        drop = sorted(TIMINGS & set(one.turns.columns))
        assert one.turns["reply"].to_list() == other.turns["reply"].to_list()
        tolerance = {"rel_tol": 1e-4, "abs_tol": 1e-5}
        assert_frame_equal(one.turns.drop(drop), other.turns.drop(drop), **tolerance)
        columns = ["turn", "step", "tokens_seen", "slots_before", "slots_after", "slot_spans"]
        assert_frame_equal(one.evictions.select(columns), other.evictions.select(columns))
    assert sum(record.evictions.height for record in alone) > 5
    assert max(record.turns["concurrency"].max() for record in together) > 1
    assert all(record.turns["concurrency"].max() == 1 for record in alone)


def test_the_baseline_is_computed_once_for_a_batch(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    from kvfidelity.generation import run as module

    computed = []
    real = module.compute_baseline
    monkeypatch.setattr(
        module,
        "compute_baseline",
        lambda engine, plan, progress: (
            computed.append(plan.spec.policy),
            real(engine, plan, progress),
        )[1],
    )
    prefix_cache = PrefixCache(1 << 30)
    specs = [spec(policy=str(cap), trigger="turn", at=f"{cap}tok") for cap in (100, 140, 180)]
    run_batch(
        engine, [lambda at, s=s: run_dialogue(at, talk(4), s, prefix_cache) for s in specs], 3
    )
    assert computed == ["100"]


def test_an_error_in_one_run_is_raised_once_the_others_are_done(engine: Engine) -> None:
    done = []

    def good(at: Engine) -> None:
        run_dialogue(at, talk(2), spec())
        done.append(True)

    def bad(at: Engine) -> None:
        run_dialogue(at, talk(1), spec())
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        run_batch(engine, [good, bad, good], 2)
    assert len(done) == 2


def test_a_count_that_the_steps_cannot_have_made_is_an_error_of_its_run(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second of three runs: what was overwritten is no reply, and the others go on."""
    from kvfidelity.decoding.steps_eager import EagerSteps

    real, left = EagerSteps.sync, [1]

    def overwritten(self: EagerSteps, index: int) -> tuple[int, bool]:
        fed, alive = real(self, index)
        if index in left:
            left.remove(index)
            fed += 5
        return fed, alive

    monkeypatch.setattr(EagerSteps, "sync", overwritten)
    together: BatchScheduler[Any] = BatchScheduler(engine, 3)
    tasks = [together.start(lambda at: run_dialogue(at, talk(2), spec())) for _ in range(3)]
    while together.running:
        together.advance()
    assert [bool(task.error) for task in tasks] == [False, True, False]
    assert "its memory was overwritten" in str(tasks[1].error)


def test_runs_that_are_dropped_leave_nothing_behind(engine: Engine) -> None:
    """Dropped while they decode or wait: caches are freed, and the next runs are as alone."""
    alone = run_dialogue(engine, talk(3), spec())
    caches: list[Any] = []

    def run(at: Engine) -> Any:
        cache = at.new_cache("original")
        caches.append(weakref.ref(cache))
        return run_dialogue(at, talk(3), spec()), cache

    dropped: BatchScheduler[Any] = BatchScheduler(engine, 4)
    tasks = [dropped.start(run) for _ in range(2)]
    tasks.append(dropped.start(lambda at: at.scheduler and at.scheduler.wait_until(lambda: False)))
    tasks.append(dropped.start(run, alone=True))
    while not dropped._task_of:
        dropped.advance()
    assert dropped.running == 4 and len(caches) == 2
    dropped.abandon()
    assert dropped.running == 0 and not dropped.full
    assert not any(task.outcome for task in tasks)
    assert [cache() for cache in caches] == [None, None]
    [again] = run_batch(engine, [lambda at: run_dialogue(at, talk(3), spec())], 4)
    assert again.turns["reply"].to_list() == alone.turns["reply"].to_list()


def test_out_of_memory_of_a_run_alone_is_its_result(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each run is restarted alone, after the others' memory was freed."""
    from kvfidelity.decoding.steps_eager import EagerSteps

    admitted: list[int] = []

    def full(self: EagerSteps) -> float:
        admitted.append(len(self._entries))
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(EagerSteps, "step", full)
    emptied: list[int] = []
    together: BatchScheduler[Any] = BatchScheduler(engine, 2, lambda: emptied.append(len(admitted)))
    tasks = [together.start(lambda at: run_dialogue(at, talk(2), spec())) for _ in range(2)]
    assert together.full
    while together.running:
        together.advance()
    assert admitted == [2, 1, 1] and emptied == [1, 2]
    for task in tasks:
        assert task.outcome.turns["finish_reason"].to_list() == ["out_of_memory"]


def test_out_of_memory_halves_the_batch_and_costs_no_run(
    engine: Engine, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Memory for three: of four runs none fails; two at a time go on, also those that follow."""
    from kvfidelity.decoding.steps_eager import EagerSteps

    real, sizes = EagerSteps.step, []

    def scarce(self: EagerSteps) -> float:
        sizes.append(len(self._entries))
        if sizes[-1] > 3:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return real(self)

    monkeypatch.setattr(EagerSteps, "step", scarce)
    together: BatchScheduler[Any] = BatchScheduler(engine, 4)
    threads = []
    while len(threads) < 7 or together.running:
        if len(threads) < 7 and not together.full:
            threads.append(together.start(lambda at: run_dialogue(at, talk(3), spec())))
        else:
            together.advance()
    assert sizes[0] == 4 and max(sizes[1:]) == 2
    assert capsys.readouterr().err.count("memory ran out") == 1
    alone = run_dialogue(engine, talk(3), spec())
    for thread in threads:
        assert thread.error is None
        assert thread.outcome.turns["reply"].to_list() == alone.turns["reply"].to_list()


def test_a_run_too_large_for_the_memory_does_not_keep_the_batch_small(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    from kvfidelity.decoding.steps_eager import EagerSteps

    real, sizes, large = EagerSteps.step, [], talk(3)

    def scarce(self: EagerSteps) -> float:
        sizes.append(len(self._entries))
        if any(entry.sequence.max_new_tokens == 7 for entry in self._entries.values()):
            raise torch.OutOfMemoryError("CUDA out of memory")
        return real(self)

    monkeypatch.setattr(EagerSteps, "step", scarce)
    together: BatchScheduler[Any] = BatchScheduler(engine, 2)
    first = [
        together.start(
            lambda at, size=size: run_dialogue(
                at, large, dataclasses.replace(spec(), max_new_tokens=size)
            )
        )
        for size in (7, 8)
    ]
    while together.running:
        together.advance()
    assert "out_of_memory" in first[0].outcome.turns["finish_reason"].to_list()
    assert "out_of_memory" not in first[1].outcome.turns["finish_reason"].to_list()
    sizes.clear()
    for _ in range(2):
        together.start(lambda at: run_dialogue(at, large, spec()))
    while together.running:
        together.advance()
    assert max(sizes) == 2


def test_an_error_in_one_eviction_leaves_the_other_runs(engine: Engine) -> None:
    """Also a run that ends in the same step keeps its reply."""
    free = dataclasses.replace(engine, segmenter=copy.copy(engine.segmenter))
    free.segmenter.stop_ids = frozenset()

    class BrokenError(Exception):
        pass

    def bad(at: Engine) -> Any:
        cache = at.new_cache("original")
        evictor = Evictor(build_policy("streaming_llm", {}), EvictionSchedule(Trigger.STEP, 62, 40))
        hidden = at.feed(cache, list(range(3, 53)))[-1:]
        evictor._evict_if_due = lambda *_, **__: _raise(BrokenError()) if cache.size == 62 else None  # type: ignore[method-assign]
        return generate(at, cache, evictor, hidden, 40, Sampling(), 1)

    def good(at: Engine) -> Any:
        return reply(at, max_new_tokens=12)[0].ids

    together: BatchScheduler[Any] = BatchScheduler(free, 2)
    broken, whole = together.start(bad), together.start(good)
    while together.running:
        together.advance()
    assert isinstance(broken.error, BrokenError)
    assert whole.outcome == good(free)


def _raise(error: Exception) -> None:
    raise error


def test_out_of_memory_while_copying_a_cache_restarts_the_run_alone(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    from kvfidelity.cache.managed import ManagedCache

    real, calls = ManagedCache.fork, []

    def scarce(self: ManagedCache, *arguments: Any) -> ManagedCache:
        calls.append(self.size)
        if len(calls) == 2:
            raise RuntimeError("CUDA error: out of memory")
        return real(self, *arguments)

    monkeypatch.setattr(ManagedCache, "fork", scarce)
    runs = [lambda at: run_dialogue(at, talk(4), spec(**CELLS[1])) for _ in range(2)]
    for records in run_batch(engine, runs, 2):
        assert set(records.turns["finish_reason"]) <= {"length", "eos"}
    assert len(calls) > 3


@pytest.mark.parametrize("where", ["admit", "step", "feed"])
def test_out_of_memory_among_others_is_not_a_result(
    engine: Engine, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    """When a sequence is admitted, while all decode, or while a prompt is fed: all runs finish."""
    from kvfidelity.decoding.steps_eager import EagerSteps

    holder, name = (Engine, "feed") if where == "feed" else (EagerSteps, where)
    real, calls = getattr(holder, name), []

    def scarce(self: Any, *arguments: Any, **options: Any) -> Any:
        calls.append(where)
        if len(calls) == 3:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return real(self, *arguments, **options)

    alone = run_dialogue(engine, talk(3), spec())
    monkeypatch.setattr(holder, name, scarce)
    prefix_cache = PrefixCache(1 << 30)
    runs = [lambda at: run_dialogue(at, talk(3), spec(), prefix_cache) for _ in range(3)]
    for records in run_batch(engine, runs, 3):
        assert_frame_equal(
            records.turns.drop(TIMINGS & set(records.turns.columns)),
            alone.turns.drop(TIMINGS & set(alone.turns.columns)),
            rel_tol=1e-4,
            abs_tol=1e-5,
        )
    assert len(calls) > 3


def test_the_rate_of_a_batch_is_the_sum_of_its_sequences(engine: Engine) -> None:
    """Two that decode together from start to end, and one alone."""
    free = dataclasses.replace(engine, segmenter=copy.copy(engine.segmenter))
    free.segmenter.stop_ids = frozenset()
    runs = [lambda at: run_dialogue(at, talk(1), spec()) for _ in range(2)]
    for records, batch_size in (
        (run_batch(free, runs, 2)[0], 2),
        (run_dialogue(free, talk(1), spec()), 1),
    ):
        [row] = records.turns.to_dicts()
        assert row["concurrency"] == batch_size
        assert row["batch_tokens_per_s"] == pytest.approx(batch_size * row["decode_tokens_per_s"])


@pytest.mark.parametrize("chunk", [7, 64])
def test_a_prompt_fed_in_chunks_is_one_forward(engine: Engine, chunk: int) -> None:
    """Hidden states, both histories of scores, recent queries and the hook's calls."""
    ids = torch.randint(3, 200, (150,), generator=torch.Generator().manual_seed(0)).tolist()
    calls: list[int] = []
    found = []
    for part in (1000, chunk):
        at = dataclasses.replace(engine, chunk=part)
        cache = at.new_cache("original", collect_scores=True, query_window=20)
        cache.before_forward = lambda cache: calls.append(cache.size)
        hidden = torch.cat([at.feed(cache, ids[:90]), at.feed(cache, ids[90:])])
        assert cache.scores is not None
        found.append((hidden, cache.scores.rows("latest"), cache.scores.rows("accumulated")))
        assert cache.recent_queries is not None
        found[-1] += (cache.recent_queries.latest(),)
    assert calls == [0, 90] * 2
    for whole, chunked in zip(*found, strict=True):
        assert torch.allclose(whole, chunked, rtol=1e-4, atol=1e-5)


def reply(engine: Engine, **options: Any) -> tuple[Reply, Evictor]:
    cache = engine.new_cache("rerotated")
    evictor = Evictor(build_policy("streaming_llm", {}), EvictionSchedule(Trigger.STEP, 60, 40))
    hidden = engine.feed(cache, list(range(3, 53)))[-1:]
    values = {"max_new_tokens": 40, "sampling": Sampling(), "seed": 1} | options
    return generate(engine, cache, evictor, hidden, **values), evictor


def test_sampling_depends_on_the_seed_alone(engine: Engine) -> None:
    warm = Sampling(temperature=1.5, top_p=0.9)
    first, second = reply(engine, sampling=warm)[0], reply(engine, sampling=warm)[0]
    assert first.ids == second.ids
    assert first.ids != reply(engine, sampling=warm, seed=2)[0].ids
    assert first.ids != reply(engine)[0].ids


def test_the_evictor_is_asked_at_the_moments_of_a_token_by_token_loop(engine: Engine) -> None:
    """50 slots, threshold 60, target 40: asked with 60 slots, evictions every 20 tokens."""
    made, evictor = reply(engine)
    assert made.finish == "length" and len(made.ids) == 40
    assert [(e.step, e.slots_before, e.slots_after) for e in evictor.log] == [
        (10, 60, 40),
        (30, 60, 40),
    ]
    assert evictor.step == 40


def test_each_run_keeps_the_modes_of_pytorch_that_it_is_in(engine: Engine) -> None:
    """All runs are in one thread, and PyTorch's modes are the thread's."""
    modes: dict[int, list[tuple[bool, bool]]] = {0: [], 1: [], 2: []}

    def note(run: int) -> None:
        modes[run].append((torch.is_inference_mode_enabled(), torch.is_grad_enabled()))

    def run(at: Engine, number: int) -> None:
        note(number)
        cache = at.new_cache("original")
        with [torch.inference_mode(), torch.no_grad(), torch.inference_mode(mode=False)][number]:
            for token in range(1 + number):
                at.feed(cache, [token])
                note(number)
        note(number)

    with torch.inference_mode():
        run_batch(engine, [lambda at, n=n: run(at, n) for n in modes], 3)
        assert torch.is_inference_mode_enabled()
    usual = (False, True)
    assert modes[0] == [usual, (True, False), usual]
    assert modes[1] == [usual, (False, False), (False, False), usual]
    assert modes[2] == [usual] * 5


def test_an_interrupt_reaches_whoever_advances_the_runs(engine: Engine) -> None:
    def run(at: Engine) -> None:
        at.feed(at.new_cache("original"), [1])
        raise KeyboardInterrupt

    together: BatchScheduler[None] = BatchScheduler(engine, 2)
    together.start(run)
    with pytest.raises(KeyboardInterrupt):
        together.advance()


def test_what_a_run_held_is_freed_when_it_ends(engine: Engine) -> None:
    held: list[weakref.ref[Any]] = []

    def run(at: Engine, fails: bool) -> None:
        cache = at.new_cache("original")
        held.append(weakref.ref(cache))
        at.feed(cache, [1])
        if fails:
            raise RestartError

    together: BatchScheduler[None] = BatchScheduler(engine, 2)
    gc.disable()
    try:
        tasks = [together.start(lambda at, f=f: run(at, f)) for f in (False, True)]
        together.advance()
        assert len(tasks) == 2 and [ref() for ref in held] == [None, None]
    finally:
        gc.enable()
