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
from kvfidelity.pipeline.known_sizes import ModelSize, dialogue_tokens, model_size
from kvfidelity.records.grid import NO_THRESHOLD
from kvfidelity.sizes import most_host_bytes, size_in_tokens

# How fast a run is. Each number says where it was measured, so that it can be measured again:
# benchmarks/README.md names the commands.
#: CPU: tokens per second through a whole job, and the number of weights for which they hold; the
#: default run on two cores.
CPU_TOKENS_PER_S, CPU_PARAMETERS = 160.0, 135e6
#: CPU: cost of a decoded token and of a recall question with its candidates, in prefill tokens.
DECODE_COST, PROBE_COST = 20, 60
#: Cost of collecting attention scores; benchmarks/cache.py has 1.23.
SCORING_COST = 1.3
#: GPU: seconds of a forward of a segment (a prompt, a reply, all questions of a moment). Starting
#: kernels takes nearly all of it, so neither the segment's length nor the model's size counts.
#: benchmarks/grid_h100.yaml on one H100, run by run, gave 0.07 to 0.1.
GPU_SEGMENT_S = 0.07
#: GPU: seconds of a decoded token at least, and bytes of weights read per second above that; one
#: sequence in benchmarks/gpu.py and gpu_real.py on an H100.
GPU_STEP_S, GPU_BYTES_PER_S = 0.004, 2.5e12
#: GPU: share of both that runs in a batch do not share, and seconds of a run outside of forwards.
#: A profile of the same grid with a batch of 16 had 41 s in its 1,900 forwards, 8 s of decoding
#: and 17 s of the 204 runs' other work; the jobs took 110 s. (One grid on one machine.)
GPU_UNSHARED, GPU_RUN_S = 0.26, 0.08
#: GPU: arithmetic per second; a prefill of 8,192 tokens through Llama-3-8B in benchmarks/gpu.py on
#: an H100. float32 is the card's nominal rate, halved.
GPU_FLOPS = {"bfloat16": 4.4e14, "float16": 4.4e14, "float32": 3e13}
#: GPU: importing, loading the model, compiling kernels and capturing decode steps (9 s of the same
#: profile), once.
GPU_START_S = 20.0
#: Loading the model on a CPU once, then each run's share of Snakemake, its client and its small
#: jobs, then tables, figures and page; benchmarks/startup.py on the default run.
LOAD_S, OVERHEAD_PER_RUN_S, TABLES_S = 5.0, 0.3, 25.0
#: Turns of a dialogue of unknown length, depths at which needles are inserted.
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
#: Forwards that a dialogue costs a training: its own, the base model's, each layer's again, and two
#: for the gradient.
TRAINING_FORWARDS = 5
#: A training's seconds before its first step, for imports and loading (6 s on a core without a GPU;
#: with one not measured), and bytes next to its weights: a step on 8,000 tokens with SmolLM2-135M
#: in fp32 on a CPU needs 7 GB with them (benchmarks/training.py).
TRAINING_START_S, TRAINING_BYTES = 12.0, 7e9
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


@dataclass(frozen=True)
class Work:
    """What a job computes: fed tokens, forwards of segments and of questions, decoded tokens,
    recall questions."""

    tokens: float
    segments: float
    steps: float
    questions: int

    def seconds(self, size: ModelSize, dtype: str, *, on_gpu: bool, batch: int) -> float:
        """Time on one device.

        Args:
            batch: runs that are computed at once, on a GPU.
        """
        if not on_gpu:
            tokens = self.tokens + self.steps * DECODE_COST + self.questions * PROBE_COST
            return tokens / CPU_TOKENS_PER_S * size.parameters / CPU_PARAMETERS
        read_s = size.parameters * BYTES[dtype] / GPU_BYTES_PER_S
        alone = self.segments * max(GPU_SEGMENT_S, read_s) + self.steps * max(GPU_STEP_S, read_s)
        arithmetic = 2 * size.parameters * self.tokens / GPU_FLOPS[dtype]
        return alone * (GPU_UNSHARED + (1 - GPU_UNSHARED) / batch) + GPU_RUN_S + arithmetic


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
    scored = session["score_every_run"] or threshold is not None
    fed = 1.0  # share of the dialogue that is fed
    if prefix_is_shared and session["share_prefix"] and threshold is not None:
        fed = max(0.0, 1 - threshold / prompt)
    questions, answers = _questions(session), session["recall"].get("max_new_tokens", 0)
    trigger = settings["thresholds"].get(run["threshold"], {}).get("trigger", "turn")
    # All questions of a moment are one forward, unless one of them may evict or is answered.
    together = trigger == "turn" and not answers
    work = Work(
        tokens=prompt * fed * (SCORING_COST if scored else 1.0),
        segments=2 * (session["max_turns"] or DEFAULT_TURNS) * fed
        + (min(questions, _moments(session)) if together else 2 * questions),
        steps=generated * (fed if session["replies"] == "own" else 1.0) + questions * answers,
        questions=questions,
    )
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
        work.seconds(size, entry["dtype"], on_gpu=on_gpu, batch=session["batch_size"]),
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
    work = Work(test["replies"] * read, test["replies"] * (1 + len(SINGLE)), 0, 0)
    return JobEstimate(
        work.seconds(size, entry["dtype"], on_gpu=on_gpu, batch=1) + weights / LOADED_BYTES_PER_S,
        weights + BASE_BYTES + read * size.geometry.token_bytes(entry["dtype"]),
    )


def estimate_training(
    settings: Mapping[str, Any], model: str, model_dir: Path, *, on_gpu: bool
) -> JobEstimate:
    """What the fine-tuning of a model takes; arguments as for `estimate_run`."""
    adapter = settings["models"][model]["adapter"]
    size = model_size(settings["models"][model], model_dir)
    select, dialogues = adapter["select"], adapter["steps"] * adapter["batch"]
    tokens = dialogues * (select["min_tokens"] + select["max_tokens"]) / 2
    work = Work(TRAINING_FORWARDS * tokens, TRAINING_FORWARDS * dialogues, 0, 0)
    weights = size.parameters * BYTES["float32"]
    # The model, a copy of it to which the adapter is added, and what is written.
    return JobEstimate(
        work.seconds(size, "float32", on_gpu=on_gpu, batch=1) + TRAINING_START_S,
        3 * weights + TRAINING_BYTES,
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
    return int(per_moment * _moments(session))


def _moments(session: Mapping[str, Any]) -> int:
    """How often in a run questions are asked."""
    return max(1, len(session["recall"].get("after_turns") or ()))
