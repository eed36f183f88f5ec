"""Run time and memory that a scheduler is asked for, for jobs that load a model: generous."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from kvfidelity.errors import UserError
from kvfidelity.models.geometry import BYTES, Geometry
from kvfidelity.pipeline.plan_estimate import CPU_TOKENS_PER_S, DEFAULT_TURNS, GPU_TOKENS_PER_S
from kvfidelity.records.grid import NO_THRESHOLD
from kvfidelity.sizes import size_in_bytes, size_in_tokens

#: Numbers of weights for which `plan_estimate` has the two speeds. On a GPU a small model is not
#: faster than a large one: starting kernels takes the time.
CPU_PARAMETERS, GPU_PARAMETERS = 135e6, 8e9
#: Cost of a decoded token, in prefill tokens.
DECODE_COST = 50
#: Cost of collecting attention scores; benchmarks/README.md has 1.23.
SCORING_COST = 1.3
#: Factor by which an estimate may be too low.
SAFETY_FACTOR = 2.0
MEMORY_MARGIN = 1.2
START_S = 60.0
#: Reading weights from a shared file system. A group of generate jobs has room for it: `START_S`
#: counts for each of its runs.
LOADED_BYTES_PER_S = 1e8
#: Python, torch with its GPU libraries, and activations.
BASE_BYTES = 3e9
#: Tokens of a dialogue of unknown length.
DEFAULT_TOKENS = 16_000
#: Planted replies: tokens of a word, and kinds of replies read after one history.
WORD_TOKENS, KINDS = 2, 8
#: A model that is not fetched yet counts as large as Llama-3-8B.
DEFAULT_GEOMETRY = Geometry(layers=32, kv_heads=8, head_size=128, window=8192)


@dataclass(frozen=True)
class ResourceEstimate:
    """What one job needs: wall time in minutes and memory in MB (10^6 bytes)."""

    minutes: int
    mem_mb: int

    def scaled(self, attempt: int) -> ResourceEstimate:
        """For a later attempt: the earlier one may have failed for lack of either."""
        return ResourceEstimate(self.minutes * attempt, self.mem_mb * attempt)


def computes_on_gpu(device: str, gpus: int) -> bool:
    """Whether a job's model will be on a GPU, as far as is known before it starts.

    Args:
        device: of the model, as configured.
        gpus: number of GPUs that the job asks for; decides if the device is `auto`.
    """
    return gpus > 0 if device == "auto" else device != "cpu"


def estimate_resources(
    settings: Mapping[str, Any],
    run: Mapping[str, str],
    model_dir: Path,
    manifest: Path,
    *,
    on_gpu: bool,
) -> ResourceEstimate:
    """What the generate job of a run needs.

    Args:
        settings: the checked configuration.
        run: its wildcards: model, dataset, policy, positions, threshold, seed, dialogue.
        model_dir: the model's folder; one that is not there yet counts as 8B weights.
        manifest: of the dialogues, for their lengths; without it `select` decides.
        on_gpu: see `computes_on_gpu`.
    """
    model, session = settings["models"][run["model"]], settings["session"]
    parameters, geometry = _parameters_and_geometry(model_dir)
    prompt_tokens = _dialogue_tokens(
        settings["datasets"][run["dataset"]], manifest, int(run["dialogue"])
    )
    generated_tokens = _generated_tokens(session)
    evicts = run["threshold"] != NO_THRESHOLD
    scoring_cost = SCORING_COST if session["score_every_run"] or evicts else 1.0
    seconds = (prompt_tokens * scoring_cost + generated_tokens * DECODE_COST) / _tokens_per_s(
        parameters, on_gpu
    )
    token_bytes = geometry.token_bytes(model["dtype"])
    # Two caches: the run without evictions and a copy of it for a reply of the model's own; an
    # evicting run has two more, as long as its threshold and the turn that passes it.
    cached = 2 * (prompt_tokens + generated_tokens)
    if evicts:
        threshold_size = settings["thresholds"][run["threshold"]]["at"]
        threshold = size_in_tokens(threshold_size, token_bytes=token_bytes, window=geometry.window)
        cached += 2 * min(prompt_tokens + generated_tokens, 2 * threshold)
    # Runs in one batch share these; each asks for its part.
    shared_bytes = (
        parameters * BYTES[model["dtype"]] + size_in_bytes(session["prefix_memory"]) + BASE_BYTES
    )
    return _rounded(seconds, shared_bytes / session["batch_size"] + cached * token_bytes)


def estimate_scoring_resources(
    settings: Mapping[str, Any], model: str, model_dir: Path, *, on_gpu: bool
) -> ResourceEstimate:
    """What a job that scores corrupted replies needs; arguments as for `estimate_resources`."""
    test, dtype = settings["reliability"], settings["models"][model]["dtype"]
    weights, geometry = _parameters_and_geometry(model_dir)
    read = WORD_TOKENS * (test["max_context_words"] + KINDS * test["max_words"])
    size = weights * BYTES[dtype]
    seconds = test["replies"] * read / _tokens_per_s(weights, on_gpu)
    seconds += size / LOADED_BYTES_PER_S
    return _rounded(seconds, size + BASE_BYTES + read * geometry.token_bytes(dtype))


def _tokens_per_s(weights: float, on_gpu: bool) -> float:
    if on_gpu:
        return GPU_TOKENS_PER_S * min(1.0, GPU_PARAMETERS / weights)
    return CPU_TOKENS_PER_S * CPU_PARAMETERS / weights


def _rounded(seconds: float, memory: float) -> ResourceEstimate:
    return ResourceEstimate(
        minutes=math.ceil((START_S + SAFETY_FACTOR * seconds) / 60),
        mem_mb=math.ceil(MEMORY_MARGIN * memory / 1e6),
    )


def _dialogue_tokens(dataset: Mapping[str, Any], manifest: Path, dialogue: int) -> int:
    lengths = _lengths(manifest)
    if dialogue < len(lengths):
        return lengths[dialogue]
    return dataset.get("select", {}).get("max_tokens") or DEFAULT_TOKENS


def _generated_tokens(session: Mapping[str, Any]) -> int:
    turns = session["max_turns"] or DEFAULT_TURNS
    if session["replies"] == "reference" and session["own_reply_turns"]:
        turns = min(turns, session["own_reply_turns"])
    return int(turns * session["max_new_tokens"])


def _parameters_and_geometry(folder: Path) -> tuple[float, Geometry]:
    """Weights and geometry; a folder's content does not change while a workflow runs."""
    return (
        _read_model(folder)
        if (folder / "config.json").is_file()
        else (GPU_PARAMETERS, DEFAULT_GEOMETRY)
    )


@lru_cache
def _read_model(folder: Path) -> tuple[float, Geometry]:
    try:
        counts = [_element_count(file) for file in folder.glob("*.safetensors")]
        return float(sum(counts)) or GPU_PARAMETERS, Geometry.of(folder)
    except (OSError, ValueError, KeyError, TypeError, UserError):
        return GPU_PARAMETERS, DEFAULT_GEOMETRY  # loading it will say what is wrong with it


def _element_count(file: Path) -> int:
    """Numbers in a safetensors file, from its header alone."""
    with file.open("rb") as handle:
        header = json.loads(handle.read(int.from_bytes(handle.read(8), "little")))
    return sum(math.prod(entry["shape"]) for name, entry in header.items() if name[0] != "_")


def _lengths(manifest: Path) -> list[int]:
    return _read_lengths(manifest, manifest.stat().st_mtime_ns) if manifest.is_file() else []


@lru_cache
def _read_lengths(manifest: Path, changed: int) -> list[int]:
    try:
        return list(json.loads(manifest.read_text(encoding="utf-8"))["tokens"])
    except (ValueError, KeyError, TypeError):
        return []
