"""What no schema can say of a configuration: what its sections name must exist, and fit."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from kvfidelity.dialogues.formats.registry import known_formats
from kvfidelity.errors import UserError
from kvfidelity.judges.base import Judge
from kvfidelity.judges.registry import judge_schema, known_judges
from kvfidelity.options import option_faults
from kvfidelity.pipeline.adapters import adapter_faults, averaged_faults, evaluation_faults
from kvfidelity.pipeline.schema_validator import SchemaValidator
from kvfidelity.pipeline.select_checks import select_faults
from kvfidelity.pipeline.setting_errors import SHOWN, explain_error, shown
from kvfidelity.pipeline.setting_schemas import fill_defaults, policy_entries, policy_schemas
from kvfidelity.records.grid import BASELINE, NO_THRESHOLD, cells
from kvfidelity.sizes import parse_size
from kvfidelity.suggestions import did_you_mean, nearest


def setting_faults(settings: Mapping[str, Any]) -> list[str]:
    """Everything that is wrong with settings that fit their schema, one line each.

    Defaults of judges are filled in, because their schemas depend on their kind.
    """
    checks = (
        _check_dialogue_formats,
        _check_datasets,
        adapter_faults,
        _check_policies,
        _check_thresholds,
        _check_session,
        _check_names,
        _check_judges,
        _check_cases,
    )
    faults = [fault for check in checks for fault in check(settings)]
    # The grid is made of what the sections name.
    return (
        faults
        or [*_check_grid(settings)]
        or [*averaged_faults(settings), *evaluation_faults(settings)]
    )


def _check_policies(settings: Mapping[str, Any]) -> Iterator[str]:
    schemas = policy_schemas()
    for name, outer in settings["policies"].items():
        for path, entry in policy_entries(outer):
            kind, where = entry["kind"], ".".join(("policies", name, *path))
            if kind in schemas:
                validator = SchemaValidator(schemas[kind])
                for error in validator.iter_errors(dict(entry)):
                    error.path.extendleft(reversed(("policies", name, *path)))
                    yield explain_error(error)
                if path and "healing" in entry:
                    yield f"{where}: a wrapped policy heals nothing; move it to policies.{name}"
                if path and kind == BASELINE:
                    yield f"{where}: {kind} ranks nothing; wrap another"
            elif not settings["policy_files"]:  # otherwise checked where those files are read
                yield f"{where}: unknown kind {shown(kind)}{did_you_mean(kind, schemas)}"
    baselines = [name for name, one in settings["policies"].items() if one["kind"] == BASELINE]
    if len(baselines) > 1:
        yield (
            f"policies: {' and '.join(baselines)} are all of kind {BASELINE}; every run is paired "
            "with each of them, so that turns count more than once: keep one"
        )
    if not baselines:
        yield (
            f"policies: one of kind {BASELINE} is needed, all others are compared with it; add "
            f"`{BASELINE}: {{kind: {BASELINE}}}`"
        )


def _check_datasets(settings: Mapping[str, Any]) -> Iterator[str]:
    for name, entry in settings["datasets"].items():
        yield from select_faults(f"datasets.{name}.select", entry["select"])
        pool = entry["select"]["pool"]
        if entry["count"] > pool:
            yield (
                f"datasets.{name}.count: {entry['count']} is more than the {pool} dialogues of "
                f"datasets.{name}.select.pool; raise that too, or lower `count`"
            )


def _check_thresholds(settings: Mapping[str, Any]) -> Iterator[str]:
    if NO_THRESHOLD in settings["thresholds"]:
        yield f"thresholds.{NO_THRESHOLD}: this name means no eviction; choose another"
    for name, entry in settings["thresholds"].items():
        if "target" not in entry:
            continue
        if entry["trigger"] == "paper":
            yield (
                f"thresholds.{name}: trigger paper takes no target, its policies keep their own "
                "size; remove `target`"
            )
            continue
        at, target = parse_size(entry["at"]), parse_size(entry["target"])
        if at[1] == target[1] and target[0] >= at[0]:
            yield f"thresholds.{name}: target must be below `at`"


def _check_session(settings: Mapping[str, Any]) -> Iterator[str]:
    session = settings["session"]
    if session["recall"]["needles_per_depth"] and session["max_first_prompt_tokens"] is not None:
        yield (
            "session.recall.needles_per_depth and session.max_first_prompt_tokens exclude each "
            "other: a needle could be cut away; set one of them to 0 or null"
        )
    if session["workers_per_gpu"] > 1 and session["batch_size"] == 1:
        yield (
            f"session.workers_per_gpu is {session['workers_per_gpu']}, but with a batch_size of 1 "
            "each run has its device to itself: set workers_per_gpu to 1, or a larger batch_size"
        )


def _check_names(settings: Mapping[str, Any]) -> Iterator[str]:
    for section in ("models", "datasets", "policies", "thresholds"):
        names, known = settings["grid"][section], settings[section]
        for name in [] if names == "all" else names:
            if name not in known:
                yield f"grid.{section}: no {shown(name)}{did_you_mean(name, known)}"
    known = settings.get("judges", {})
    for number, name in enumerate(settings["judging"]):
        if name not in known:
            yield f"judging: no judge {shown(name)}{did_you_mean(name, known)}"
        if name in settings["judging"][:number]:
            yield f"judging: {shown(name)} is listed twice; its verdicts would count twice"


def _check_cases(settings: Mapping[str, Any]) -> Iterator[str]:
    """Names are folders, and some disks take `A` and `a` for one folder."""
    for section in ("models", "datasets", "policies", "thresholds", "judges"):
        first: dict[str, str] = {}
        for name in settings.get(section, {}):
            other = first.setdefault(name.lower(), name)
            if other != name:
                yield f"{section}: {other!r} and {shown(name)} differ in case only; rename one"


def _check_dialogue_formats(settings: Mapping[str, Any]) -> Iterator[str]:
    try:
        known = list(known_formats(settings["format_files"]))
    except UserError as error:
        yield f"format_files: {error}"
        return
    for name, entry in settings["datasets"].items():
        if entry["format"] not in known:
            yield (
                f"datasets.{name}.format: {shown(entry['format'])} is not one of "
                f"{', '.join(known)}{nearest(entry['format'], known)}"
            )


def _check_judges(settings: Mapping[str, Any]) -> Iterator[str]:
    try:
        known = known_judges(settings["judge_files"])
    except UserError as error:
        yield f"judge_files: {error}"
        return
    for name, entry in settings.get("judges", {}).items():
        kind = entry["kind"]
        unknown: dict[str, Any] = {"properties": {"kind": {"enum": [*known]}}}
        schema = judge_schema(known[kind]) if kind in known else unknown
        wrong = list(SchemaValidator(schema).iter_errors(entry))
        for fault in wrong:
            fault.path.extendleft((name, "judges"))
            yield explain_error(fault)
        if wrong:
            continue
        fill_defaults(entry, schema, schema)
        yield from (f"judges.{name}.{fault}" for fault in option_faults(known[kind], entry))
        yield from (f"judges.{name}: {fault}" for fault in _faults_of_judge(settings, entry, known))


def _faults_of_judge(
    settings: Mapping[str, Any], entry: Mapping[str, Any], known: Mapping[str, type[Judge]]
) -> Iterator[str]:
    kind = entry["kind"]
    if entry["rubric"] == "pairwise" and not known[kind].compares:
        others = ", ".join(other for other in known if known[other].compares)
        yield (
            f"kind {kind} compares nothing; use another rubric, or a judge of a kind that compares "
            f"({others})"
        )
    if entry["rubric"] != "pairwise" and not known[kind].scores:
        yield f"kind {kind} gives no scores; use rubric pairwise"
    if entry.get("max_usd") is not None and entry.get("model") not in settings["prices"]:
        yield (
            "max_usd needs the model's price, dollars per million tokens: add `prices: "
            f"{{{str(entry.get('model'))[:SHOWN]}: {{input: ..., output: ...}}}}`"
        )


def _check_grid(settings: Mapping[str, Any]) -> Iterator[str]:
    sections = {"model": "models", "dataset": "datasets", "policy": "policies"}
    sections |= {"threshold": "thresholds"}
    faults = []
    for field in ("include", "exclude"):
        for number, pattern in enumerate(settings["grid"][field]):
            for key, section in sections.items():
                known = [*settings[section], *([NO_THRESHOLD] if key == "threshold" else [])]
                if key in pattern and pattern[key] not in known:
                    path, name = f"grid.{field}.{number}.{key}", pattern[key]
                    faults.append(f"{path}: no {shown(name)}{did_you_mean(name, known)}")
            if field == "include" and pattern.get("threshold") == NO_THRESHOLD:
                faults.append(
                    f"grid.include.{number}.threshold: {NO_THRESHOLD!r} is added automatically"
                )
    if not faults and not cells(settings):
        faults.append("grid: nothing is left to run; check its lists and `exclude`")
    yield from faults
