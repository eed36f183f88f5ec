"""CUDA graph steps: the same replies, evictions and caches as on a CPU, in fp32."""

from __future__ import annotations

import copy
import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from polars.testing import assert_frame_equal

from kvfidelity.cache.evictor import EvictionSchedule, Evictor, Trigger
from kvfidelity.cache.policies import build_policy
from kvfidelity.cache.positions import PositionMode
from kvfidelity.decoding.engine import Engine
from kvfidelity.decoding.generate import generate
from kvfidelity.decoding.sampling import Sampling
from kvfidelity.decoding.scheduler import BatchScheduler, run_batch
from kvfidelity.decoding.steps import StepsKind
from kvfidelity.dialogues.segments import ChatSegmenter
from kvfidelity.generation.run import run_dialogue
from kvfidelity.prefix.cache import PrefixCache
from kvfidelity.prefix.disk_cache import DiskPrefixCache
from kvfidelity.records.artifacts import TIMINGS
from tests.cache.conftest import CONFIGS, tiny
from tests.decoding.test_scheduler import CELLS, spec
from tests.generation.test_run import BASE, talk
from tests.models.tiny import save_tiny, tiny_llama, tiny_tokenizer

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="PyTorch sees no GPU here"),
]


#: Budgets that differ between kv heads, in all position modes and with evictions at any time.
RAGGED_CELLS: list[dict[str, Any]] = [
    {"kind": "adakv", "parameters": {"policy": "h2o"}, "positions": "stale", "trigger": "step"},
    {"kind": "pyramidkv", "parameters": {"policy": "knorm", "beta": 4}, "positions": "original"},
    {
        "kind": "simlayerkv",
        "parameters": {"threshold": 0.5, "sinks": 2, "recent": 6},
        "positions": "rerotated",
        "trigger": "prompt",
    },
]


@pytest.fixture(scope="module")
def on_gpu(engine: Engine) -> Engine:
    return moved(engine)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_model_directory_loads_onto_the_gpu(tmp_path: Path, dtype: str) -> None:
    engine = Engine.load(save_tiny(tmp_path / "model"), dtype, "cuda")
    assert engine.device.type == "cuda"
    assert run_dialogue(engine, talk(2), spec()).turns["reply"].null_count() == 0


def moved(engine: Engine) -> Engine:
    """The same model on the GPU."""
    return dataclasses.replace(engine, model=copy.deepcopy(engine.model).cuda(), graphs={})


def same_records(one: Any, other: Any) -> None:
    drop = sorted({"device"} | TIMINGS & set(one.turns.columns))
    assert one.turns["reply"].to_list() == other.turns["reply"].to_list()
    tolerance = {"rel_tol": 1e-3, "abs_tol": 1e-4}
    assert_frame_equal(one.turns.drop(drop), other.turns.drop(drop), **tolerance)
    columns = [
        "turn",
        "step",
        "tokens_seen",
        "slots_before",
        "slots_after",
        "slot_spans",
        "position_spans",
    ]
    assert_frame_equal(one.evictions.select(columns), other.evictions.select(columns))


@pytest.mark.parametrize("cell", CELLS, ids=lambda cell: cell["kind"])
def test_a_run_on_the_gpu_is_the_run_on_the_cpu(
    engine: Engine, on_gpu: Engine, cell: dict[str, Any]
) -> None:
    expected = run_dialogue(engine, talk(4), spec(**cell))
    found = run_dialogue(on_gpu, talk(4), spec(**cell))
    same_records(expected, found)
    assert len(graphs(on_gpu, ragged=False)) == 1, "one serves every run, turn and eviction"


def graphs(engine: Engine, *, ragged: bool) -> list[StepsKind]:
    """Kinds of the graphs captured for one sequence."""
    return [kind for size, kind in engine.graphs if size == 1 and kind.ragged == ragged]


@pytest.mark.parametrize("cell", RAGGED_CELLS, ids=lambda cell: cell["kind"])
def test_a_ragged_run_on_the_gpu_is_the_run_on_the_cpu(
    engine: Engine, on_gpu: Engine, cell: dict[str, Any]
) -> None:
    expected = run_dialogue(engine, talk(4), spec(**cell))
    found = run_dialogue(on_gpu, talk(4), spec(**cell))
    same_records(expected, found)
    assert found.evictions.height
    assert len(graphs(on_gpu, ragged=True)) == 1


def test_a_batch_on_the_gpu_gives_single_runs(on_gpu: Engine) -> None:
    """Ragged ones and others together: prompts in one forward, replies by a graph of each kind."""
    specs = [spec(**cell) for cell in (*CELLS, *RAGGED_CELLS)]
    talks = [talk(3 + index % 3) for index in range(len(specs))]
    pairs = list(zip(talks, specs, strict=True))
    alone = [run_dialogue(on_gpu, *pair) for pair in pairs]
    together = run_batch(
        on_gpu, [lambda at, pair=pair: run_dialogue(at, *pair) for pair in pairs], 4
    )
    for one, other in zip(alone, together, strict=True):
        same_records(one, other)
    assert max(record.turns["concurrency"].max() for record in together) == 4


@pytest.mark.parametrize("name", list(CONFIGS))
@pytest.mark.parametrize("mode", list(PositionMode))
def test_graph_steps_of_every_architecture(name: str, mode: str) -> None:
    """60 tokens with evictions and scores: tokens, nats, scores, recent queries, positions."""
    found = []
    for index in ("cpu", "cuda"):
        tokenizer = tiny_tokenizer()  # it has more ids than the model; only its stop ids matter
        segmenter = ChatSegmenter(tokenizer)
        engine = Engine.from_parts(tiny(name).to(index), segmenter, tokenizer)
        engine.segmenter.stop_ids = frozenset()
        cache = engine.new_cache(mode, collect_scores=True, query_window=8)
        evictor = Evictor(build_policy("h2o", {}), EvictionSchedule(Trigger.STEP, 70, 50))
        hidden = engine.feed(cache, list(range(3, 63)))[-1:]
        reply = generate(engine, cache, evictor, hidden, 60, Sampling(), 0)
        assert cache.scores is not None
        found.append(
            (
                reply.ids,
                torch.tensor(reply.nll),
                cache.scores.rows("latest").cpu(),
                cache.scores.rows("accumulated").cpu(),
                cache.recent_queries.latest().cpu(),
                torch.stack([cache.rotated_keys(layer) for layer in range(3)]).cpu(),
                cache.slot_table.position.cpu(),
            )
        )
        assert len(evictor.log) == 3
    assert found[0][0] == found[1][0]
    for one, other in zip(found[0][1:], found[1][1:], strict=True):
        assert torch.allclose(one, other, rtol=1e-3, atol=1e-4)


def test_a_reply_that_ends_early_leaves_the_cache_as_token_by_token(on_gpu: Engine) -> None:
    """Steps launched before the end was seen change nothing: slots, scores, recent queries."""

    def play(stops: frozenset[int], most: int) -> Any:
        engine = dataclasses.replace(on_gpu, graphs={}, segmenter=copy.copy(on_gpu.segmenter))
        engine.segmenter.stop_ids = stops
        cache = engine.new_cache("original", collect_scores=True, query_window=8)
        hidden = engine.feed(cache, list(range(3, 63)))[-1:]
        baseline = Evictor(build_policy("baseline", {}), EvictionSchedule(Trigger.TURN, None))
        return generate(engine, cache, baseline, hidden, most, Sampling(), 0), cache

    whole, _ = play(frozenset(), 100)
    index = next(i for i in range(20, 100) if whole.ids[i] not in whole.ids[:i])
    ended, cache = play(frozenset([whole.ids[index]]), 100)
    exact, twin = play(frozenset(), index)
    assert ended.finish == "eos" and ended.ids == whole.ids[:index] == exact.ids
    assert cache.size == twin.size == 60 + index
    # Not to the last bit: each graph is tuned separately. A query too many would add 1 to the sum.
    assert torch.allclose(
        cache.scores.rows("accumulated"), twin.scores.rows("accumulated"), rtol=1e-4, atol=1e-5
    )
    assert torch.allclose(
        cache.recent_queries.latest(), twin.recent_queries.latest(), rtol=1e-4, atol=1e-5
    )


def test_after_a_failed_reply_the_graph_serves_the_next(
    on_gpu: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    from kvfidelity.decoding.steps_cudagraph import GraphSteps

    expected = run_dialogue(on_gpu, talk(2), spec())

    def fail(self: GraphSteps) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    with monkeypatch.context() as patch:
        patch.setattr(GraphSteps, "step", fail)
        failed = run_dialogue(on_gpu, talk(2), spec())
    assert failed.turns["finish_reason"].to_list() == ["out_of_memory"]
    same_records(expected, run_dialogue(on_gpu, talk(2), spec()))


def test_the_graph_does_not_go_on_for_runs_that_were_dropped(on_gpu: Engine) -> None:
    """As where a worker ends with runs on their way, and another one takes its model over."""
    long = dataclasses.replace(spec(), max_new_tokens=60)
    expected = run_dialogue(on_gpu, talk(3), long)
    dropped: BatchScheduler[Any] = BatchScheduler(on_gpu, 3)
    for _ in range(3):
        dropped.start(lambda at: run_dialogue(at, talk(3), long))
    while not dropped._task_of:
        dropped.advance()
    (decoder,) = dropped._decoders.values()
    for _ in range(3):
        decoder.steps.step()
    del dropped, decoder
    found = run_batch(on_gpu, [lambda at: run_dialogue(at, talk(3), long)] * 2, 3)
    for records in found:
        same_records(expected, records)


def test_sampled_tokens_are_the_cpus(engine: Engine, on_gpu: Engine) -> None:
    warm = {"temperature": 1.3, "top_p": 0.9}
    same_records(
        run_dialogue(engine, talk(3), spec(**warm)), run_dialogue(on_gpu, talk(3), spec(**warm))
    )


@pytest.mark.parametrize("replies", ["own", "reference"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_run_from_the_disk_equals_the_run_that_computed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, replies: str
) -> None:
    """To the last bit: GPU tensors are stored, and loaded onto the GPU."""
    engine = Engine.from_model(tiny_llama().to("cuda", dtype), tiny_tokenizer())
    for kind in ("streaming_llm", "attention_top", "snapkv"):
        cell = dataclasses.replace(BASE, kind=kind, replies=replies, at="150tok")
        records = []
        for _ in range(2):
            prefix_cache = PrefixCache(
                1 << 30, DiskPrefixCache(tmp_path / kind, 1 << 30, engine, {}), store_all=True
            )
            records.append(run_dialogue(engine, talk(5), cell, prefix_cache))
            monkeypatch.setattr(
                "kvfidelity.generation.run.compute_baseline",
                lambda *args: pytest.fail("the baseline is computed again"),
            )
        monkeypatch.undo()
        for mine, theirs in zip(*records, strict=True):
            drop = TIMINGS & set(mine.columns)
            assert_frame_equal(mine.drop(drop), theirs.drop(drop), check_exact=True)
        assert records[0].evictions.height
