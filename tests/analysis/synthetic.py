"""Synthetic artifacts with known effects, in the schema that real runs write. No model was run:
every number is drawn from a random generator and every text says so.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from kvfidelity.atomic_files import write_json
from kvfidelity.dialogues.pool import SCHEMA as POOL
from kvfidelity.pipeline.rule_params import run_spec
from kvfidelity.pipeline.settings import load_settings
from kvfidelity.pipeline.staleness import notes_of
from kvfidelity.records.artifacts import write_parquet
from kvfidelity.records.columns import EVICTIONS, METRICS, RECALL, TURN, TURNS, VERDICTS
from kvfidelity.records.declaration import schema
from kvfidelity.records.grid import RunKey, dialogue_of, run_keys
from kvfidelity.records.questions import with_questions

WINDOW, AT, TARGET, PROMPT, REPLY = 1000, 500, 250, 40, 60

#: Columns that are known of a turn before it is run.
NOT_MEASURED = (
    *("model", "model_revision", "dataset", "dialogue", "dialogue_id", "policy", "kind"),
    *("parameters", "positions", "threshold", "trigger", "threshold_tokens", "target_tokens"),
    *("seed", "replies", "turn", "turns_total", "shared_prefix", "scores_collected"),
    *("prompt", "reference"),
)

#: Nats per token by (kind, positions); what is not named costs nothing.
Effects = Mapping[tuple[str, str], float]


def settings(dialogues: int, **changes: Any) -> dict[str, Any]:
    """A checked configuration for synthetic runs."""
    config: dict[str, Any] = {
        "title": "Synthetic data: no model was run",
        "models": {"synthetic": {"source": "path", "path": "none", "label": "synthetic numbers"}},
        "datasets": {
            "made": {
                "source": "path",
                "path": "none.jsonl",
                "format": "sharegpt",
                "count": dialogues,
                "select": {"pool": max(64, dialogues), "split": "test"},
            }
        },
        "policies": {
            "baseline": {"kind": "baseline"},
            "attention_top": {"kind": "attention_top"},
            "gist": {"kind": "sliding_window_gist"},
            "streaming_llm": {"kind": "streaming_llm"},
        },
        "thresholds": {"half": {"at": f"{AT}tok", "trigger": "turn", "target": f"{TARGET}tok"}},
        "judges": {"formula": {"kind": "formula", "rubric": "formula"}},
        "report": {"resamples": 200},
    }
    return load_settings(config | changes, "synthetic")


def write(
    results: Path,
    chosen: Mapping[str, Any],
    effects: Effects,
    *,
    turns: int = 15,
    edge: float = 0.0,
    noise: float = 0.2,
    seed: int = 0,
    probes: int = 0,
    memory_for: int | None = None,
) -> None:
    """Every artifact of a configuration below `results`.

    Args:
        effects: excess NLL to put in.
        edge: what a token past the trained window costs the baseline, whose cache is as long.
        noise: standard deviation of a turn's own excess; a dialogue's level has half of it.
        probes: questions at each depth, asked after the last turn; see `recall_rows`.
        memory_for: turns of a run without an eviction before memory runs out; None for all.
    """
    measured: dict[str, list[pl.DataFrame]] = defaultdict(list)
    judged: dict[tuple[str, str], list[pl.DataFrame]] = defaultdict(list)
    for index in run_keys(chosen):
        run = RunKey.from_path(index)
        model, dataset, policy, positions, threshold, number, dialogue = run
        kind = chosen["policies"][policy]["kind"]
        rng = np.random.default_rng([seed, int(dialogue), len(policy), len(positions)])
        cost = effects.get((kind, positions), 0.0)
        frame = turn_rows(kind, cost, turns, edge, noise, rng, np.random.default_rng(int(dialogue)))
        frame = with_dialogue(frame, int(dialogue))
        if kind != "baseline":
            asked = chosen["thresholds"][threshold]
            frame = frame.with_columns(trigger=pl.lit(asked["trigger"]))
            if "target" not in asked:
                frame = frame.with_columns(target_tokens=pl.lit(None))
        healing = {k: v for k, v in chosen["policies"][policy].items() if k == "healing"}
        identity = {
            "parameters": json.dumps(healing),
            "model": model,
            "model_revision": "synthetic",
            "dataset": dataset,
            "dialogue": dialogue,
            "dialogue_id": f"made-{dialogue}",
            "policy": policy,
            "kind": kind,
            "positions": positions,
            "threshold": threshold,
            "seed": int(number),
        }
        frame = frame.with_columns(**{key: pl.lit(value) for key, value in identity.items()})
        if chosen["session"]["replies"] == "own":
            frame = with_own_replies(frame)
        frame = frame.select(pl.col(name).cast(kind) for name, kind in schema(*TURN).items())
        evicted = frame["evictions"].cum_sum() > 0
        if memory_for is not None and not evicted.head(memory_for + 1).any():
            frame = cut_short(frame, memory_for)
        notes = notes_of("generate") | {"version.python": "none: synthetic", "dtype": "float32"}
        notes["spec"] = json.dumps(run_spec(chosen, results, **run._asdict()))
        cut = frame["finish_reason"][-1] == "out_of_memory"
        asked = recall_rows(frame, 0 if cut else probes)
        made = {"turns": with_questions(frame, asked), "evictions": eviction_rows(frame)}
        for name, rows in made.items():
            file = results / "generate" / index / f"{name}.parquet"
            write_parquet(rows, file, kind=name, metadata=notes)
        measured[dialogue_of(index)].append(_of_run(index, metric_rows(frame, cost, rng)))
        for judge in chosen["judging"]:
            rows = _of_run(index, verdict_rows(frame, judge, cost, edge))
            judged[judge, dialogue_of(index)].append(rows)
    for dialogue, tables in measured.items():
        file = results / "metrics" / dialogue / "metrics.parquet"
        write_parquet(pl.concat(tables), file, kind="metrics", metadata=notes_of("measure"))
    for (judge, dialogue), tables in judged.items():
        file = results / "judge" / judge / dialogue / "verdicts.parquet"
        write_parquet(pl.concat(tables), file, kind="verdicts")
    for model in chosen["models"]:
        for dataset, entry in chosen["datasets"].items():
            write_pool(results / "dialogues" / model / dataset, entry["count"], turns)


def _of_run(run: str, rows: pl.DataFrame) -> pl.DataFrame:
    return rows.select(pl.lit(run).alias("run"), pl.all())


def turn_rows(
    kind: str,
    cost: float,
    turns: int,
    edge: float,
    noise: float,
    rng: np.random.Generator,
    shared: np.random.Generator,
) -> pl.DataFrame:
    """One run, identity columns aside: cut to TARGET before a turn once AT tokens are cached."""
    baseline = kind == "baseline"
    level = 0.0 if baseline else float(rng.normal(0, noise / 2))
    rows: list[dict[str, Any]] = []
    cached, evicted = 0, False
    for turn in range(turns):
        base = 2 + shared.normal(0, 0.3, REPLY).astype(np.float32)
        start, seen = cached, turn * (PROMPT + REPLY)
        cut = not baseline and cached >= AT
        cached = TARGET if cut else cached
        evicted |= cut
        index = seen + PROMPT + np.arange(REPLY)
        extra = (cost + level + float(rng.normal(0, noise))) if evicted else 0.0
        past = np.where(index >= WINDOW, edge if baseline else 0.0, 0.0).astype(np.float32)
        nll = base + past + np.float32(extra)
        distortion = max(0.0, cost / 4 + level / 10) if evicted else 0.0
        after = cached + PROMPT
        cached = after + REPLY
        rows.append(
            dict.fromkeys(TURNS)
            | {
                "parameters": "{}",
                "trigger": "turn",
                "threshold_tokens": None if baseline else AT,
                "target_tokens": None if baseline else TARGET,
                "replies": "reference",
                "turn": turn,
                "turns_total": turns,
                "shared_prefix": not baseline and not evicted,
                "scores_collected": True,
                "prompt_tokens": PROMPT,
                "reply_tokens": REPLY,
                "tokens_seen_start": seen,
                "tokens_seen_end": seen + PROMPT + REPLY,
                "slots_start": start,
                "slots_after_prefill": after,
                "slots_after_eviction": TARGET if cut else None,
                "slots_end": cached,
                "slots_peak": max(start, cached),
                "next_position": after,
                "cache_bytes_start": start * 100,
                "cache_bytes_after_prefill": after * 100,
                "cache_bytes_after_eviction": TARGET * 100 if cut else None,
                "cache_bytes_end": cached * 100,
                "cache_bytes_peak": max(start, cached) * 100,
                "token_bytes": 100,
                "evictions": int(cut),
                "evicted_tokens": start - TARGET if cut else 0,
                "eviction_s": 0.01 * cut,
                "scoring_s": 0.02 * cut,
                "prefill_s": 0.3,
                "concurrency": 1,
                "ttft_s": 0.35,
                "tpot_s": 0.02,
                "decode_tokens_per_s": 50.0,
                "prompt": prompt(turn),
                "reply": f"synthetic reply {turn} of a run that costs {cost}",
                "reference": reference(turn),
                "finish_reason": "length",
                "reply_token_count": 4,
                "reference_nll": float(nll.mean()),
                "reference_tokens": REPLY,
                "reference_token_nll": nll.tolist(),
                "kl_baseline": max(0.0, extra),
                "reply_nll": 1.0,
                "reply_nll_baseline": 1.0 + cost,
                "reply_nll_baseline_history": 1.0 + cost,
                "retained_share": after / (seen + PROMPT),
                "kept_spans": 2.0 if evicted else 1.0,
                "future_share": min(1.0, distortion),
                "collisions": 0.0,
                "order_inversions": 0.0,
                "out_of_window_share": 0.0,
                "mean_offset_error": 100 * distortion,
                "phase_distortion": min(2.0, distortion),
                "phase_distortion_weighted": min(2.0, distortion),
                "sinks_kept": 4.0,
                "evicted_attention_share": 0.1 * evicted,
                "trained_window": WINDOW,
                "device": "none",
                "dtype": "none",
            }
        )
    return pl.DataFrame(rows, infer_schema_length=None)


def with_dialogue(turns: pl.DataFrame, number: int) -> pl.DataFrame:
    """Measures that do not vary as resampling would like: `collisions` is the same in all turns of
    a dialogue, `order_inversions` is above 0 in the first dialogue only."""
    evicted = pl.col("evictions").cum_sum() > 0
    return turns.with_columns(
        collisions=pl.when(evicted).then(float(number)).otherwise(0.0),
        order_inversions=pl.when(evicted & (number == 0)).then(pl.col("turn") % 3).otherwise(0.0),
    )


def with_own_replies(turns: pl.DataFrame) -> pl.DataFrame:
    """The same run with own replies: no reference is scored, and the likelihood of the reply after
    the baseline's history falls as that of the reference would. Of ten replies that cost a nat,
    four do not end."""
    unscored = ("reference_nll", "reference_tokens", "reference_token_nll", "kl_baseline")
    loss = pl.col("reference_nll") - 2
    number = pl.col("dialogue").cast(pl.Int32)
    unended = (pl.col("turn") + number) * 7 % 10 < (10 * 0.4 * loss).round()
    return turns.with_columns(
        reply_nll_baseline_history=1 + loss,
        finish_reason=pl.when(unended).then(pl.lit("length")).otherwise(pl.lit("eos")),
        replies=pl.lit("own"),
        **{name: pl.lit(None, turns.schema[name]) for name in unscored},
    )


def cut_short(turns: pl.DataFrame, count: int) -> pl.DataFrame:
    """The first turns, and one for which memory ran out: what was not measured is missing."""
    measured = [name for name in turns.columns if name not in NOT_MEASURED]
    failed = turns.slice(count, 1).with_columns(
        pl.lit(None, turns.schema[name]).alias(name) for name in measured
    )
    failed = failed.with_columns(finish_reason=pl.lit("out_of_memory"))
    return pl.concat([turns.head(count), failed.select(turns.columns)])


def prompt(turn: int) -> str:
    """PROMPT tokens of the tests' byte-level tokenizer and template, headers included."""
    return f"synthetic prompt {turn} ".ljust(PROMPT - 19 - (turn > 0), "x")


def reference(turn: int) -> str:
    """REPLY tokens, end of turn included."""
    return f"synthetic reference {turn} ".ljust(REPLY - 1, "y")


def eviction_rows(turns: pl.DataFrame) -> pl.DataFrame:
    """What the turns imply: the four first tokens and the last ones stay."""
    rows = []
    for number, turn in enumerate(turns.filter(pl.col("evictions") > 0).to_dicts()):
        seen, before = turn["tokens_seen_start"], turn["slots_start"]
        recent = TARGET - 4
        rows.append(
            {
                "turn": turn["turn"],
                "step": number,
                "tokens_seen": seen,
                "slots_before": before,
                "slots_after": TARGET,
                "group": "shared",
                "slot_spans": [{"start": 0, "stop": 4}, {"start": before - recent, "stop": before}],
                "token_spans": [{"start": 0, "stop": 4}, {"start": seen - recent, "stop": seen}],
                "positions": [{"start": 0, "stop": TARGET, "position": 0}],
                "next_position": TARGET,
                "eviction_s": 0.01,
                "scoring_s": 0.02,
                "attention_share": 0.1,
                "ranking_bytes": 4000 if number == 0 else None,
                "held_bytes": 900,
            }
        )
    return pl.DataFrame(rows, EVICTIONS)


def recall_rows(turns: pl.DataFrame, probes: int) -> pl.DataFrame:
    """Questions after the last turn, `probes` at each depth.

    Put in: with nothing evicted four in five are answered right; a kept beginning forgets all that
    is not at the beginning, and stale positions everything but under a kept beginning. What is
    forgotten is guessed: right in one of four.
    """
    first, last = turns.row(0, named=True), turns.row(-1, named=True)
    kept = {"sliding_window_gist": ("early",), "streaming_llm": ("recent",)}
    depths = ("early", "middle", "recent")
    known = depths if first["kind"] == "baseline" else kept.get(first["kind"], depths)
    if first["positions"] == "stale" and first["kind"] != "sliding_window_gist":
        known = ()
    shared = {name: first[name] for name in RECALL if name in first}
    name = f"{first['policy']} {first['positions']}"
    rows = []
    for number in range(3 * probes):
        depth = depths[number // probes]
        rng = np.random.default_rng([int(first["dialogue"]), number])
        # One draw for all runs: who knows the answer answers alike.
        luck = float(rng.uniform()) < (0.8 if depth in known else 0.25)
        margin = (1.0 if luck else -0.5) + float(rng.normal(0, 0.1))
        # A little of its own in every run, so that what is kept is not the same to the last bit.
        own = np.random.default_rng([int(first["dialogue"]), number, *name.encode()])
        margin += float(own.normal(0, 0.01))
        rows.append(
            dict.fromkeys(RECALL)
            | shared
            | {
                "turn": last["turn"],
                "probe": number,
                "origin": "needle",
                "depth": depth,
                "subject": f"synthetic subject {number}",
                "evidence_turn": 0,
                "evidence_retained_share": float(depth in known),
                "slots": TARGET,
                "evictions": int(turns["evictions"].sum()),
                "question": f"synthetic question {number}?",
                "answer": f"answer {number}",
                "distractors": ["one", "two", "three"],
                "answer_nll": 1.0,
                "distractor_nll": [1.0 + margin, 3.0, 3.0],
                "margin": margin,
                "chosen": luck,
                "reply": f"It is answer {number}." if luck else "I do not know.",
                "answered": luck,
            }
        )
    return pl.DataFrame(rows, RECALL, orient="row")


def metric_rows(turns: pl.DataFrame, cost: float, rng: np.random.Generator) -> pl.DataFrame:
    """Text metrics at random; repetition and echo grow by a quarter with each nat after an
    eviction."""
    drawn = {
        name: rng.uniform(0, 1, turns.height) for name in METRICS if name not in ("run", "turn")
    }
    evicted = turns["evictions"].cum_sum().to_numpy() > 0
    for name in ("rep_3", "echo_share"):
        drawn[name] = np.clip(drawn[name] / 4 + cost / 4 * evicted, 0, 1)
    return turns.select(
        "turn", **{name: pl.Series(values).cast(METRICS[name]) for name, values in drawn.items()}
    )


def verdict_rows(turns: pl.DataFrame, judge: str, cost: float, edge: float) -> pl.DataFrame:
    """Scores that fall with the cost that was put in, up to a point, and the baseline's past the
    window; every fifth verdict failed."""
    failed = pl.col("turn") % 5 == 4
    first = turns.row(0, named=True)
    name = f"{first['policy']} {first['positions']}"
    rng = np.random.default_rng([int(first["dialogue"]), *name.encode()])
    past = turns["tokens_seen_start"].fill_null(0).to_numpy() >= WINDOW
    worse = 2 * (cost + edge * past * (first["kind"] == "baseline"))
    scores = np.clip(np.round(8 - worse) + rng.integers(-1, 2, turns.height), 1, 10)
    columns = {
        "judge": pl.lit(judge),
        "judge_kind": pl.lit("formula"),
        "judge_model": pl.lit("formula"),
        "rubric": pl.lit("formula"),
        "score": pl.when(~failed).then(pl.Series(scores)),
        "status": pl.when(failed).then(pl.lit("failed")).otherwise(pl.lit("ok")),
    }
    frame = turns.select("turn", **columns)
    missing = [pl.lit(None).alias(name) for name in VERDICTS if name not in frame.columns]
    return frame.with_columns(missing).select(
        pl.col(name).cast(kind) for name, kind in VERDICTS.items()
    )


def write_pool(folder: Path, dialogues: int, turns: int) -> None:
    rows = [
        {
            "ordinal": f"{number:03d}",
            "dialogue_id": f"made-{number:03d}",
            "turns": [{"user": prompt(n), "assistant": reference(n)} for n in range(turns)],
            "n_turns": turns,
            "n_tokens": turns * (PROMPT + REPLY),
            "language": "en",
            "source": "synthetic",
            "questions": [],
        }
        for number in range(dialogues)
    ]
    write_parquet(pl.DataFrame(rows, POOL), folder / "pool.parquet", kind="dialogues")
    write_json(folder / "manifest.json", {"conversations_read": dialogues, "kept": dialogues})
