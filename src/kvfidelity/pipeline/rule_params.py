"""The part of the configuration that each rule gets: only what its artifact depends on.

Two ways to write the same thing give the same parameters: a policy's defaults are filled in and
sizes are converted to tokens, so that writing a default out reruns nothing.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict
from functools import lru_cache
from pathlib import Path
from typing import Any

from kvfidelity.dialogues.formats import registry as formats
from kvfidelity.errors import UserError
from kvfidelity.finetuning.examples import CHOSEN_BY, chosen_by
from kvfidelity.judges.base import Judge
from kvfidelity.judges.registry import is_built_in, judge_class, options_outside_verdicts
from kvfidelity.judges.requests import Limits
from kvfidelity.judges.rubric import WITH_HISTORY
from kvfidelity.models.geometry import Geometry
from kvfidelity.models.revision import model_revision
from kvfidelity.options import option_fields
from kvfidelity.pipeline.code_digest import policy_digest, stage_digest
from kvfidelity.pipeline.setting_schemas import policy_entries, policy_schemas
from kvfidelity.records.arms import arm_name
from kvfidelity.records.grid import CELL_FIELDS, NO_THRESHOLD, TOKENIZER, Cell, RunKey, cells
from kvfidelity.sizes import size_in_tokens
from kvfidelity.user_files import files_digest

SESSION_KEYS = (
    "replies",
    "max_new_tokens",
    "own_reply_turns",
    "temperature",
    "top_p",
    "max_turns",
    "max_prompt_tokens",
    "max_first_prompt_tokens",
    "feed_end_of_turn",
    "score_every_run",
    "disruption_window",
    "share_prefix",
    "recall",
)

#: How the session cuts the prompts of a dialogue.
PROMPT_CUTS = ("max_turns", "max_prompt_tokens", "max_first_prompt_tokens")
#: What a model's or dataset's entry says about where its files come from.
SOURCE = (
    "source",
    "package",
    "version",
    "sha256",
    "member",
    "member_sha256",
    "parts",
    "id",
    "revision",
    "subset",
    "split",
    "file",
    "path",
    "adapter",
)


def as_parameters(entry: Mapping[str, Any], stage: str) -> str:
    """A rule's parameters as one string: its part of the configuration and its code's digest."""
    return json.dumps({**entry, "code": stage_digest(stage)}, sort_keys=True)


def source_entry(entry: Mapping[str, Any]) -> dict[str, Any]:
    """What fetching depends on: not the licence or label, nor how a model is run."""
    return {key: entry[key] for key in SOURCE if entry.get(key) is not None}


def source_digest(entry: Mapping[str, Any]) -> str:
    """A digest of that, 8 hex digits: part of the path of what was fetched."""
    text = json.dumps(source_entry(entry), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def run_spec(
    settings: Mapping[str, Any],
    results: Path,
    *,
    model: str,
    dataset: str,
    policy: str,
    positions: str,
    threshold: str,
    seed: str,
    dialogue: str,
) -> dict[str, Any]:
    """One cell as `generation.spec.RunSpec` has it; `dialogue` is not part of it.

    Args:
        results: its dialogues say how large the model's cache is. Sizes are as written in the
            configuration where there are no dialogues yet, and so no runs.
    """
    return {
        "model": model,
        "dataset": dataset,
        "policy": policy,
        "positions": positions,
        "threshold": threshold,
        "seed": int(seed),
        "model_revision": model_revision(settings["models"][model]),
        **policy_part(settings, policy),
        **threshold_part(settings, results, model, dataset, threshold),
        **session_part(settings),
    }


def session_part(settings: Mapping[str, Any]) -> dict[str, Any]:
    """What a run's specification has of the session: the same for all runs."""
    return {key: settings["session"][key] for key in SESSION_KEYS}


def threshold_part(
    settings: Mapping[str, Any], results: Path, model: str, dataset: str, threshold: str
) -> dict[str, Any]:
    """What a run's specification has of its threshold, sizes in tokens; arguments as `run_spec`."""
    entry = {} if threshold == NO_THRESHOLD else settings["thresholds"][threshold]
    geometry = _geometry(results / "dialogues" / model / dataset / TOKENIZER)
    dtype = settings["models"][model]["dtype"]
    return {
        "trigger": entry.get("trigger", "turn"),
        "at": _in_tokens(entry.get("at"), geometry, dtype),
        "target": _in_tokens(entry.get("target"), geometry, dtype),
    }


def policy_part(settings: Mapping[str, Any], policy: str) -> dict[str, Any]:
    """What a run's specification has of its policy: kind, parameters, digest of its code."""
    entry = settings["policies"][policy]
    spec = {"kind": entry["kind"], "parameters": policy_parameters(entry)}
    schemas = policy_schemas()
    kinds = {inner["kind"] for _, inner in policy_entries(entry)}
    modules = sorted({schemas[kind]["module"] for kind in kinds if kind in schemas})
    if kinds <= schemas.keys():
        # A policy's code is in the parameters of its own runs, so that a new one reruns no others.
        # Merged runs may be older than this code; `merge` compares their policies' code.
        return spec | ({} if settings["merge"] else {"policy_digest": policy_digest(*modules)})
    files = settings["policy_files"]
    digests = [files_digest(files), *([policy_digest(*modules)] if modules else [])]
    return spec | {"policy_files": list(files), "policy_digest": " ".join(digests)}


def own_policy(settings: Mapping[str, Any], policy: str) -> dict[str, Any] | None:
    """A policy of a user-defined kind, with the files that may define it; None if built in."""
    entry, files = settings["policies"][policy], settings["policy_files"]
    if {inner["kind"] for _, inner in policy_entries(entry)} <= policy_schemas().keys():
        return None
    return {"name": policy, "entry": entry, "files": list(files), "digest": files_digest(files)}


def generation_parameters(settings: Mapping[str, Any], results: Path, run: RunKey) -> str:
    """A run's specification as its generate job gives it; its dialogue is not part of it."""
    cell = {name: getattr(run, name) for name in CELL_FIELDS}
    return json.dumps(run_spec(settings, results, **cell, dialogue=""), sort_keys=True)


def policy_parameters(entry: Mapping[str, Any]) -> dict[str, Any]:
    """A policy's parameters with its kind's defaults, wrapped policies as entries with theirs.

    Those of a user's own kind are as written.
    """
    known = policy_schemas().get(entry["kind"], {"properties": {}})["properties"]
    defaults = {key: about["default"] for key, about in known.items() if "default" in about}
    inside = {
        path[0]: {"kind": inner["kind"], **policy_parameters(inner)}
        for path, inner in policy_entries(entry)
        if len(path) == 1
    }
    return defaults | {key: value for key, value in entry.items() if key != "kind"} | inside


def _in_tokens(size: str | None, geometry: Geometry | None, dtype: str) -> str | None:
    if size is None or geometry is None:
        return size
    tokens = size_in_tokens(size, token_bytes=geometry.token_bytes(dtype), window=geometry.window)
    return f"{tokens}tok"


def _geometry(folder: Path) -> Geometry | None:
    file = folder / "config.json"
    return _read_geometry(folder, file.stat().st_mtime_ns) if file.is_file() else None


@lru_cache
def _read_geometry(folder: Path, changed: int) -> Geometry | None:
    try:
        return Geometry.of(folder)
    except UserError:
        return None  # extraction says what is wrong with it


def selection_params(settings: Mapping[str, Any], dataset: str) -> dict[str, Any]:
    """What extraction depends on: not `count`, so that raising it only adds jobs."""
    entry = settings["datasets"][dataset]
    chosen = {key: entry[key] for key in ("format", "join_tokens", "select") if key in entry}
    if entry["select"]["min_prompt_tokens"] is not None:
        chosen["prompt_cuts"] = {name: settings["session"][name] for name in PROMPT_CUTS}
    if not formats.is_built_in(entry["format"]):
        # Only dialogues in user-defined formats depend on these files.
        files = list(settings["format_files"])
        chosen |= {"format_files": files, "format_digest": files_digest(files)}
    return chosen


def finetuning_params(settings: Mapping[str, Any], model: str) -> dict[str, Any]:
    """What fine-tuning depends on, besides the files of the base model and of the dialogues."""
    return source_entry(settings["models"][model])


def training_dialogues_digest(adapter: Mapping[str, Any]) -> str:
    """A digest of what says which dialogues a training sees, 8 hex digits: the name of their file.

    Args:
        adapter: a resolved entry.
    """
    keys = ("base", "data", "base_source", *CHOSEN_BY)
    text = json.dumps({key: adapter[key] for key in keys}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def training_dialogues_params(settings: Mapping[str, Any], model: str) -> dict[str, Any]:
    """What the extraction of a model's training dialogues depends on."""
    chosen = chosen_by(settings["models"][model]["adapter"])
    if not formats.is_built_in(chosen["data_source"]["format"]):
        files = list(settings["format_files"])
        chosen |= {"format_files": files, "format_digest": files_digest(files)}
    return chosen


def judge_params(settings: Mapping[str, Any], judge: str) -> dict[str, Any]:
    """What verdicts depend on: not prices, nor how many requests are in flight."""
    entry = settings["judges"][judge]
    outside = options_outside_verdicts(judge_kind(settings, judge))
    chosen = {key: value for key, value in entry.items() if key not in outside}
    if entry.get("context_tokens") is not None and entry.get("reply_tokens", 0) is None:
        chosen["reply_tokens"] = settings["session"]["max_new_tokens"]
    if not is_built_in(entry["kind"]):
        # Only verdicts of user-defined kinds depend on these files.
        files = list(settings["judge_files"])
        chosen |= {"judge_files": files, "judge_digest": files_digest(files)}
    return chosen


def judge_limits(settings: Mapping[str, Any], judge: str) -> dict[str, Any]:
    """How a judge is asked, as `judges.requests.Limits` has it."""
    entry = settings["judges"][judge]
    keys = [item.name for item in option_fields(Limits)]
    chosen = {key: entry[key] for key in keys if key in entry}
    return chosen | {"price": settings["prices"].get(entry.get("model"))}


def judge_kind(settings: Mapping[str, Any], judge: str) -> type[Judge]:
    """The class of a judge's kind."""
    return judge_class(settings["judges"][judge]["kind"], settings["judge_files"])


def is_pairwise(entry: Mapping[str, Any]) -> bool:
    """Whether a judge compares replies with those of the baseline; other judges give scores."""
    return bool(entry["rubric"] == "pairwise")


def active_judges(settings: Mapping[str, Any], *, pairwise: bool) -> list[str]:
    """Names of the judges that are run: those that compare, or those that give scores."""
    entries = settings["judges"]
    return [name for name in settings["judging"] if is_pairwise(entries[name]) == pairwise]


def shows_own_history(settings: Mapping[str, Any], judge: str) -> bool:
    """Whether a judge is shown a conversation, and the model's own replies are part of it."""
    rubric = settings["judges"][judge]["rubric"]
    return rubric in WITH_HISTORY and settings["session"]["replies"] == "own"


def judge_test_pairs(settings: Mapping[str, Any], judge: str) -> list[tuple[str, str]]:
    """Models and datasets on whose corrupted replies a judge is tested.

    What a model is asked does not depend on the models under test, so it is asked once per dataset.
    """
    if not settings["reliability"]["replies"]:
        return []
    pairs = sorted({(cell.model, cell.dataset) for cell in cells(settings)})
    if needs_likelihood(settings, judge):
        return pairs
    first = {dataset: model for model, dataset in reversed(pairs)}
    return [(model, dataset) for dataset, model in sorted(first.items())]


def judge_test_params(settings: Mapping[str, Any], judge: str) -> dict[str, Any]:
    """What a judge's test depends on."""
    entry = judge_params(settings, judge)
    if not judge_kind(settings, judge).needs_network:
        return entry
    batch = settings["judges"][judge].get("batch", False)
    return entry | {"batch": batch, "repeats": settings["reliability"]["repeats"]}


def needs_likelihood(settings: Mapping[str, Any], judge: str) -> bool:
    """Whether a judge computes its verdicts from the model's likelihood."""
    return judge_kind(settings, judge).needs_likelihood


def grid_settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Which runs there are, which judges judged them, and the statistics' settings."""
    chosen: dict[str, Any] = {name: settings[name] for name in ("grid", "report")}
    chosen["models"] = {name: _arm(entry) for name, entry in settings["models"].items()}
    chosen["thresholds"] = {name: {} for name in settings["thresholds"]}
    for section, key in (("datasets", "count"), ("policies", "kind")):
        entries = settings[section].items()
        chosen[section] = {name: {key: entry[key]} for name, entry in entries}
    chosen["judging"] = active_judges(settings, pairwise=False)
    chosen["comparing"] = active_judges(settings, pairwise=True)
    return chosen


def _arm(entry: Mapping[str, Any]) -> dict[str, Any]:
    """What tables say of a model that is fine-tuned here."""
    adapter = entry.get("adapter")
    if not adapter:
        return {}
    arm = arm_name(adapter["arm"], adapter["loss"])
    return {"adapter": {"base": adapter["base"], "arm": arm, "seed": adapter["seed"]}}


def table_settings(settings: Mapping[str, Any], results: Path) -> dict[str, Any]:
    """`grid_settings` with digests of the runs' specifications, in the order of the cells."""
    digests = [spec_digest(_cell_spec(settings, results, cell)) for cell in cells(settings)]
    expected = {"specs": "".join(digests), "merge": bool(settings["merge"])}
    return grid_settings(settings) | expected


def spec_digest(spec: Mapping[str, Any]) -> str:
    """Digest of a run specification with its dtype, 8 hex digits."""
    return hashlib.sha256(json.dumps(spec, sort_keys=True).encode()).hexdigest()[:8]


def run_settings(settings: Mapping[str, Any], results: Path, **cell: str) -> dict[str, Any]:
    """All that a run depends on of the configuration but the device: its specification, dtype."""
    return run_spec(settings, results, **cell) | {
        "dtype": settings["models"][cell["model"]]["dtype"]
    }


def _cell_spec(settings: Mapping[str, Any], results: Path, cell: Cell) -> dict[str, Any]:
    names = {name: str(value) for name, value in asdict(cell).items()}
    return run_settings(settings, results, **names, dialogue="")


def merge_settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    """What merging depends on: all that says which runs there are and how they are made."""
    names = (
        "datasets",
        "policies",
        "policy_files",
        "thresholds",
        "session",
        "judges",
        "judge_files",
        "format_files",
    )
    chosen = grid_settings(settings) | {name: settings[name] for name in (*names, "merge")}
    chosen["judging"] = settings["judging"]
    chosen["models"] = {
        name: source_entry(entry) | {"dtype": entry["dtype"]}
        for name, entry in settings["models"].items()
    }
    return chosen


def report_settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    """What the page says of the configuration beyond what the tables hold."""
    chosen = {name: settings[name] for name in ("title", "report")}
    for section, keys in (("models", ("label", "licence")), ("datasets", ("licence",))):
        entries = settings[section].items()
        chosen[section] = {
            name: {key: entry[key] for key in keys if key in entry} for name, entry in entries
        }
    fed_keys = ("max_prompt_tokens", "max_first_prompt_tokens", "feed_end_of_turn")
    chosen["session"] = {name: settings["session"][name] for name in fed_keys}
    return chosen
