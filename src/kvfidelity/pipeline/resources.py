"""Time and memory of the jobs that load a model.

What a dry run says and what a scheduler is asked for come from the same estimate; a scheduler is
asked for more, since a job that exceeds its limits is killed.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kvfidelity.judges.corruption_kinds import SINGLE
from kvfidelity.models.geometry import BYTES
from kvfidelity.pipeline.known_sizes import dialogue_tokens, model_size
from kvfidelity.prefix.memory import most_host_bytes
from kvfidelity.records.grid import NO_THRESHOLD
from kvfidelity.sizes import size_in_tokens

#: Tokens per second through a whole job, and the number of weights for which they hold. The first
#: is the default run's on two CPU cores; the second, on one large GPU, is a guess. On a GPU a small
#: model is not faster than a large one: starting kernels takes the time.
CPU_TOKENS_PER_S, CPU_PARAMETERS = 100.0, 135e6
GPU_TOKENS_PER_S, GPU_PARAMETERS = 2000.0, 8e9
#: Cost of a decoded token and of a recall question with its candidates, in prefill tokens.
DECODE_COST, PROBE_COST = 20, 60
#: Cost of collecting attention scores; benchmarks/README.md has 1.23.
SCORING_COST = 1.3
#: Turns of a dialogue of unknown length, and depths at which needles are inserted.
DEFAULT_TURNS, NEEDLE_DEPTHS = 12, 3
#: Factor by which an estimate may be too low, for a scheduler.
SAFETY_FACTOR = 2.0
MEMORY_MARGIN = 1.2
START_S = 60.0
#: Reading weights from a shared file system. A group of generate jobs has room for it: `START_S`
#: counts for each of its runs.
LOADED_BYTES_PER_S = 1e8
#: Python, torch with its GPU libraries, and activations.
BASE_BYTES = 3e9
#: Tokens of a word of a corrupted reply.
WORD_TOKENS = 2


@dataclass(frozen=True)
class JobEstimate:
    """What one job takes: seconds of computing and bytes of memory, as expected."""

    seconds: float
    nbytes: float

    @property
    def minutes(self) -> int:
        """Wall time to ask a scheduler for."""
        return math.ceil((START_S + SAFETY_FACTOR * self.seconds) / 60)

    @property
    def mem_mb(self) -> int:
        """Memory to ask a scheduler for, in units of 10^6 bytes."""
        return math.ceil(MEMORY_MARGIN * self.nbytes / 1e6)


def computes_on_gpu(device: str, gpus: int) -> bool:
    """Whether a job's model will be on a GPU, as far as is known before it starts.

    Args:
        device: of the model, as configured.
        gpus: number of GPUs that the job asks for; decides if the device is `auto`.
    """
    return gpus > 0 if device == "auto" else device != "cpu"


def estimate_run(
    settings: Mapping[str, Any],
    run: Mapping[str, str],
    model_dir: Path,
    manifest: Path,
    *,
    on_gpu: bool,
    prefix_is_shared: bool = False,
) -> JobEstimate:
    """What the generate job of a run takes.

    Args:
        settings: the checked configuration.
        run: its wildcards: model, dataset, policy, positions, threshold, seed, dialogue.
        model_dir: the model's folder; see `known_sizes.model_size` for one that is not there yet.
        manifest: of the dialogues, for their lengths; without it `select` decides.
        on_gpu: see `computes_on_gpu`.
        prefix_is_shared: an evicting run finds its prefix computed. Without, it computes the whole
            dialogue.
    """
    entry, session = settings["models"][run["model"]], settings["session"]
    size = model_size(entry, model_dir)
    token_bytes = size.geometry.token_bytes(entry["dtype"])
    prompt = dialogue_tokens(settings["datasets"][run["dataset"]], manifest, int(run["dialogue"]))
    generated = generated_tokens(session)
    threshold = None
    if run["threshold"] != NO_THRESHOLD:
        threshold = size_in_tokens(
            settings["thresholds"][run["threshold"]]["at"],
            token_bytes=token_bytes,
            window=size.geometry.window,
        )
    scoring_cost = SCORING_COST if session["score_every_run"] or threshold is not None else 1.0
    tokens = prompt * scoring_cost + generated * DECODE_COST
    if prefix_is_shared and session["share_prefix"] and threshold is not None:
        tokens *= max(0.0, 1 - threshold / prompt)
    tokens += _questions(session) * PROBE_COST
    # Two caches: the run without evictions and a copy of it for a reply of the model's own; an
    # evicting run has two more, as long as its threshold and the turn that passes it.
    cached = 2 * (prompt + generated)
    if threshold is not None:
        cached += 2 * min(prompt + generated, 2 * threshold)
    # Runs in one batch share these; each asks for its part.
    shared_bytes = (
        size.parameters * BYTES[entry["dtype"]]
        + most_host_bytes(session["prefix_memory"])
        + BASE_BYTES
    )
    return JobEstimate(
        tokens / _tokens_per_s(size.parameters, on_gpu),
        shared_bytes / session["batch_size"] + cached * token_bytes,
    )


def estimate_scoring(
    settings: Mapping[str, Any], model: str, model_dir: Path, *, on_gpu: bool
) -> JobEstimate:
    """What a job that scores corrupted replies takes; arguments as for `estimate_run`."""
    test, entry = settings["reliability"], settings["models"][model]
    size = model_size(entry, model_dir)
    read = WORD_TOKENS * (test["max_context_words"] + len(SINGLE) * test["max_words"])
    weights = size.parameters * BYTES[entry["dtype"]]
    seconds = test["replies"] * read / _tokens_per_s(size.parameters, on_gpu)
    return JobEstimate(
        seconds + weights / LOADED_BYTES_PER_S,
        weights + BASE_BYTES + read * size.geometry.token_bytes(entry["dtype"]),
    )


def generated_tokens(session: Mapping[str, Any]) -> int:
    """Tokens of own replies in a run."""
    return int(own_replies(session) * session["max_new_tokens"])


def own_replies(session: Mapping[str, Any]) -> int:
    """Own replies in a run; 0 if none is generated."""
    if session["replies"] == "own":
        return int(session["max_turns"] or DEFAULT_TURNS)
    if not session["max_new_tokens"]:
        return 0
    turns = session["max_turns"] or DEFAULT_TURNS
    return int(min(turns, session["own_reply_turns"] or turns))


def _questions(session: Mapping[str, Any]) -> int:
    """Recall questions in a run."""
    recall = session["recall"]
    per_moment = NEEDLE_DEPTHS * recall.get("needles_per_depth", 0)
    per_moment += recall.get("dataset_questions", 0)
    return int(per_moment * max(1, len(recall.get("after_turns") or ())))


def _tokens_per_s(weights: float, on_gpu: bool) -> float:
    if on_gpu:
        return GPU_TOKENS_PER_S * min(1.0, GPU_PARAMETERS / weights)
    return CPU_TOKENS_PER_S * CPU_PARAMETERS / weights
