"""Runs whose keep sets an engine chose are replayed by the core, and judged like probes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from kvfidelity.decoding.engine import Engine
from kvfidelity.engine_check.answers import AnswerKind, read_answers
from kvfidelity.engine_check.bookkeeping import BY_NAME
from kvfidelity.engine_check.expected import all_expected
from kvfidelity.engine_check.probes import (
    Eviction,
    Probe,
    ProbeSet,
    read_probe_set,
    write_probe_set,
)
from kvfidelity.engine_check.replay import expected_of, replayed
from kvfidelity.engine_check.rules import attention_blocks
from kvfidelity.engine_check.verdict import judge
from kvfidelity.errors import UserError
from tests.engine_check.simulated import as_answers
from tests.engine_check.test_answers import write
from tests.models.tiny import tiny_llama, tiny_tokenizer

RULE = {"prompt": 41, "after": 43, "block": 4, "start": 4, "recent": 8, "most": 20, "pool": 3}


def chosen(engine: Engine, dialogues: list[list[int]]) -> list[Probe]:
    """A run without and one with an eviction, by the rule."""
    after = RULE["after"]
    tokens = tuple(dialogues[0][:110])
    eviction = attention_blocks(engine, tokens, RULE)
    return [
        Probe("nothing", "nothing", "chosen", tokens, (after + 1, 110)),
        Probe("evicted", "evicted", "chosen", tokens, (after + 1, 110), (eviction,)),
    ]


def test_layers_keep_the_blocks_that_received_most_attention(
    engine: Engine, dialogues: list[list[int]]
) -> None:
    tokens = tuple(dialogues[0][:110])
    eviction = attention_blocks(engine, tokens, RULE)
    assert (eviction.after, eviction.by_layer, len(eviction.keep)) == (43, True, 2)
    cache = engine.new_cache("original", collect_scores=True)
    sums = torch.zeros(2, 43)
    for count in (41, 1, 1):
        engine.feed(cache, tokens[cache.size : cache.size + count])
        latest = cache.scores.rows("latest").sum(1)  # type: ignore[union-attr,arg-type]
        size = latest.shape[1]
        for at in range(4, size):
            sums[:, at] += latest[:, at : min(at + 3, size)].max(-1).values
    for layer, ranges in enumerate(eviction.keep):
        kept = {t for start, stop in ranges for t in range(start, stop)}
        assert len(kept) == 20 + 43 % 4
        assert {0, 1, 2, 3, *range(32, 43)} <= kept
        totals = {start: float(sums[layer, start : start + 4].sum()) for start in range(4, 32, 4)}
        best = sorted(totals, key=lambda start: -totals[start])[:2]
        assert {start for start in totals if start in kept} == set(best)


@pytest.mark.parametrize("name", ["original", "rerotated_next_seen"])
def test_a_run_with_keep_sets_by_layer_is_named(
    engine: Engine, dialogues: list[list[int]], name: str
) -> None:
    probes = chosen(engine, dialogues)
    [nothing, evicted] = all_expected(engine, probes, lambda probe: [BY_NAME[name]])
    computed = {probe.name: probe.expected_of(name) for probe in (nothing, evicted)}
    verdict = judge(as_answers(computed, AnswerKind.LOGPROB), expected_of(engine, probes))
    assert (verdict.name, verdict.fits) == (name, True)


def test_a_file_of_runs_is_read_with_its_model(
    engine: Engine, dialogues: list[list[int]], tmp_path: Path
) -> None:
    lines = []
    for probe in all_expected(
        engine, chosen(engine, dialogues), lambda probe: [BY_NAME["original"]]
    ):
        line: dict[str, Any] = {
            "probe": probe.name,
            "tokens": list(probe.tokens),
            "scored": list(probe.scored),
            "logprob": probe.expected_of("original").logprob.tolist(),
        }
        if probe.evictions:
            line["rule"] = RULE | {"name": "attention_blocks"}
        lines.append(line)
    runs = write(tmp_path / "runs.jsonl", *lines)
    probe_set = replayed(runs, saved(engine, tmp_path / "model"))
    verdict = judge(read_answers(runs, probe_set), probe_set)
    assert (verdict.name, verdict.passes()) == ("original", True)


def test_a_run_scored_before_the_eviction_of_its_rule_is_refused(
    engine: Engine, dialogues: list[list[int]], tmp_path: Path
) -> None:
    run = {
        "probe": "early",
        "tokens": dialogues[0][:110],
        "scored": [43, 110],
        "logprob": [-1.0] * 67,
        "rule": RULE | {"name": "attention_blocks"},
    }
    nothing = {key: value for key, value in run.items() if key != "rule"} | {"probe": "nothing"}
    runs = write(tmp_path / "runs.jsonl", run, nothing)
    with pytest.raises(UserError, match=r"line 1: token 43 is scored, .* score from 44 on"):
        replayed(runs, saved(engine, tmp_path / "model"))


def saved(engine: Engine, folder: Path) -> Path:
    """The engine's model as a folder."""
    model = tiny_llama()
    model.load_state_dict(engine.model.state_dict(), strict=False)
    model.save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


def test_malformed_runs_are_refused_before_the_model_is_loaded(tmp_path: Path) -> None:
    run = {"probe": "x", "tokens": [1, 2, 3, 4], "scored": [3, 4], "logprob": [-1.0]}
    eviction = {"after": 2, "keep": [[[0, 1]]]}
    for line, message in (
        ({"probe": "x"}, "a run has probe, tokens, scored"),
        (run | {"scored": [3, 9]}, r"scored is \[3, 9\], but there are 4 tokens"),
        (run | {"evictions": [eviction | {"after": 3}]}, "score from 4 on"),
        (run | {"evictions": [eviction, eviction | {"after": 4}]}, "after 4 tokens: leave it out"),
        (run | {"evictions": [eviction | {"keep": [[[1, 0]]]}]}, "keep ranges"),
        (run | {"evictions": [eviction | {"keep": [[[0, 1]], [[0, 2]]]}]}, "different numbers"),
        (run | {"rule": {"name": "other"}}, "attention_blocks"),
        (run | {"logprob": [float("nan")]}, "token 3: nan is no log-probability"),
        (run | {"logprob": []}, "0 values of logprob"),
        (run, "no probe with evictions is answered"),
        (run | {"evictions": [eviction]}, "no probe without an eviction"),
        (run | {"evictions": [eviction, eviction | {"after": 1}]}, "after 1 follows that after 2"),
        (run | {"evictions": [eviction, {"after": 3, "keep": [[[0, 3]]]}]}, "keeps token 1, which"),
        (run | {"evictions": [eviction, {"after": 2, "keep": [[[1, 2]]]}]}, "keeps token 1, which"),
    ):
        with pytest.raises(UserError, match=message):
            replayed(write(tmp_path / "runs.jsonl", line), tmp_path / "no_model")


def test_runs_of_another_model_or_conversation_are_refused(
    engine: Engine, dialogues: list[list[int]]
) -> None:
    [nothing, evicted] = chosen(engine, dialogues)
    heads = (((0, 9),),) * 3
    for probe, message in (
        (replace(nothing, tokens=(*nothing.tokens[:-1], 9999)), "it is another model's run"),
        (
            replace(evicted, evictions=(Eviction(43, heads),)),
            "3 keep sets, the model has 2 kv heads",
        ),
        (
            replace(evicted, evictions=(Eviction(43, heads, by_layer=True),)),
            "3 keep sets, the model has 2 layers",
        ),
        (
            replace(evicted, conversation="nothing", tokens=(3, *evicted.tokens[1:])),
            "not those of the other runs of conversation nothing",
        ),
    ):
        with pytest.raises(UserError, match=message):
            expected_of(engine, [nothing, probe])


def test_a_rule_with_values_that_do_not_fit_is_refused(
    engine: Engine, dialogues: list[list[int]]
) -> None:
    tokens = tuple(dialogues[0][:110])
    for change, message in (
        ({"pool": None}, "pool must be a whole number"),
        ({"most": 0}, "most must be a whole number"),
        ({"start": 6}, "start 6 must be whole blocks of 4"),
        ({"after": 40}, "the prompt of 41, which ends before"),
        ({"after": 110}, "after 110 of 110 tokens"),
        ({"most": 80}, "room for 17 blocks"),
        ({"most": 8}, "room for -1 blocks"),
    ):
        with pytest.raises(UserError, match=message):
            attention_blocks(engine, tokens, RULE | change)
    with pytest.raises(UserError, match="lacks pool"):
        attention_blocks(engine, tokens, {key: 1 for key in RULE if key != "pool"})


def test_evictions_by_layer_survive_the_file(probe_set: ProbeSet, tmp_path: Path) -> None:
    probe = probe_set.find("short_prefix")
    assert probe is not None
    eviction = Eviction(63, (((0, 30),), ((1, 31),)), by_layer=True)
    changed = ProbeSet({}, (replace(probe, evictions=(eviction,)),))
    write_probe_set(tmp_path / "probes.jsonl", changed)
    assert read_probe_set(tmp_path / "probes.jsonl").probes[0].evictions == (eviction,)
