"""Puts results that were made in several places, such as two clusters, into one folder.

A run is taken from the first folder that has it, with its metrics and verdicts. The workflow makes
what is missing, except generated replies.
"""

from __future__ import annotations

import json
import shutil
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from kvfidelity.atomic_files import replacing
from kvfidelity.bounded_json import parse_json, read_json
from kvfidelity.errors import UserError
from kvfidelity.pipeline.rule_params import run_spec
from kvfidelity.pipeline.setting_schemas import policy_entries
from kvfidelity.records.grid import (
    GENERATED,
    MANIFEST,
    RUN_FIELDS,
    TOKENIZER,
    cells,
    dialogue_of,
    run_keys,
    run_of_file,
    runs_by_dialogue,
)
from kvfidelity.records.notes import input_digest, joint_digest


def merge_sources(settings: Mapping[str, Any]) -> dict[str, list[Path]]:
    """The files to take for each artifact of the configuration's runs, by path below results.

    What was made of a dialogue's runs is taken from several folders if its runs are.

    Raises:
        UserError: no folder is listed, a folder is missing, or no folder has one of the runs.
    """
    folders = [Path(folder) for folder in settings["merge"]]
    if not folders:
        raise UserError("merge: no folders are listed; name those whose results are to be merged")
    for folder in folders:
        if not (folder / "generate").is_dir():
            raise UserError(
                f"merge: {folder} holds no results (no {folder / 'generate'}): name folders like "
                "the `results` of a finished workflow, relative to the working directory"
            )
    keys = run_keys(settings)
    folder_of = {run: _first_folder_with(folders, f"generate/{run}/turns.parquet") for run in keys}
    missing = [run for run, origin in folder_of.items() if origin is None]
    if missing:
        names = ", ".join(map(str, folders))
        raise UserError(
            f"merge: {len(missing)} of {len(keys)} runs are in none of {names}, such as "
            f"{missing[0]}: run them there, or leave them out of `grid`"
        )
    found: dict[str, list[Path]] = {}
    for run, origin in folder_of.items():
        if origin:
            made = [f"generate/{run}/{kind}.parquet" for kind in GENERATED]
            found |= {name: [origin / name] for name in made}
    for dialogue, runs in runs_by_dialogue(settings).items():
        origins = list(dict.fromkeys(origin for run in runs if (origin := folder_of[run])))
        for name in _files_of_dialogue(dialogue, settings):
            files = [origin / name for origin in origins]
            if all(file.is_file() for file in files):
                found[name] = files
    for pair, origin in _pairs(settings, folder_of):
        found |= {name: [origin / name] for name in _files_of_pair(pair, origin, settings)}
    return found


def merge(settings: Mapping[str, Any], out: Path) -> dict[str, Any]:
    """Check and copy the files that `merge_sources` names.

    Returns:
        `runs`: number of runs by folder; `also_in`: runs that other folders have too; `differing`:
        those of them whose content differs.

    Raises:
        UserError: an artifact is missing or corrupt, was made with another configuration or other
            code than the rest, or the folders' dialogues differ.
    """

    found = merge_sources(settings)
    codes: dict[str, tuple[str, Path]] = {}
    for name, files in found.items():
        for file in files:
            _check(settings, name, file, codes)
    _same_dialogues(settings)
    origins = {
        run_of_file(file): Path(str(file)[: -len(name) - 1])
        for name, [file, *_] in found.items()
        if name.startswith("generate/") and file.stem == "turns"
    }
    # Those of dialogues last: they are made of runs, which are in place then.
    of_dialogues = {
        name: dialogue
        for dialogue in runs_by_dialogue(settings)
        for name in _files_of_dialogue(dialogue, settings)
        if name in found
    }
    for name, [file, *_] in found.items():
        if name not in of_dialogues:
            with replacing(out / name) as temporary:
                shutil.copyfile(file, temporary)
    of_dialogue = runs_by_dialogue(settings)
    for name, dialogue in of_dialogues.items():
        _join(name, {run: origins[run] for run in of_dialogue[dialogue]}, out)
    return _summary(settings, found)


def _join(name: str, origins: Mapping[str, Path], out: Path) -> None:
    """Write what was made of a dialogue's runs, each run's rows from the folder of that run.

    Args:
        name: of the file, below the results.
        origins: the folder of each run, in the order of the rows.
    """
    import polars as pl

    from kvfidelity.records.artifacts import read_metadata, read_parquet, write_parquet

    first = next(iter(origins.values())) / name
    notes = read_metadata(first)
    kind = notes["kind"]
    tables = {folder: read_parquet(folder / name, kind=kind) for folder in set(origins.values())}
    parts = [tables[folder].filter(run=run) for run, folder in origins.items()]
    for (run, folder), part in zip(origins.items(), parts, strict=True):
        # A comparison is with the baseline, which is compared with nothing.
        if part.is_empty() and kind != "comparisons":
            raise UserError(
                f"merge: {folder / name} has no rows of {run}: finish the workflow there first"
            )
    turns = [out / "generate" / run / "turns.parquet" for run in origins]
    made_of = json.loads(notes.get("inputs", "{}")) | {"turns": joint_digest(turns)}
    metrics = out / "metrics" / dialogue_of(next(iter(origins))) / "metrics.parquet"
    if "metrics" in made_of:
        made_of["metrics"] = input_digest(metrics)
    kept = {key: notes[key] for key in ("code", "settings") if key in notes}
    written = kept | {"inputs": json.dumps(made_of, sort_keys=True)}
    write_parquet(pl.concat(parts), out / name, kind=kind, metadata=written)


def _first_folder_with(folders: Sequence[Path], name: str) -> Path | None:
    return next((folder for folder in folders if (folder / name).is_file()), None)


def _files_of_dialogue(dialogue: str, settings: Mapping[str, Any]) -> Iterator[str]:
    # Verdicts are made of metrics, so after them.
    yield f"metrics/{dialogue}/metrics.parquet"
    for judge in settings["judging"]:
        yield f"judge/{judge}/{dialogue}/verdicts.parquet"
        yield f"comparisons/{judge}/{dialogue}/comparisons.parquet"


def _files_of_pair(pair: str, origin: Path, settings: Mapping[str, Any]) -> Iterator[str]:
    yield f"dialogues/{pair}/{MANIFEST}"
    folder = origin / "dialogues" / pair / TOKENIZER
    if not folder.is_dir():
        raise UserError(
            f"merge: {folder} does not exist: copy it from where these results were made, with the "
            "rest of `results/dialogues`"
        )
    yield from (
        f"dialogues/{pair}/{TOKENIZER}/{file.name}"
        for file in sorted(folder.iterdir())
        if file.is_file()
    )
    for judge in settings["judging"]:
        for kind in ("judge_test", "pairs"):
            name = f"reliability/{judge}/{pair}/{kind}.parquet"
            if (origin / name).is_file():
                yield name


def _pairs(
    settings: Mapping[str, Any], folder_of: Mapping[str, Path | None]
) -> Iterator[tuple[str, Path]]:
    """Each pair of model and dataset, and the folder of its first run."""
    for model, dataset in sorted({(cell.model, cell.dataset) for cell in cells(settings)}):
        pair = f"{model}/{dataset}"
        yield (
            pair,
            next(
                folder for run, folder in folder_of.items() if folder and run.startswith(pair + "/")
            ),
        )


def _check(
    settings: Mapping[str, Any], name: str, file: Path, codes: dict[str, tuple[str, Path]]
) -> None:
    """Check one artifact; `codes` has the digest of each part of the code, and its first file."""
    if name.startswith("dialogues/"):
        if file.name == MANIFEST:
            _manifest(file)
        return
    from kvfidelity.records.artifacts import digest, read_metadata, read_parquet

    if not file.is_file():
        raise UserError(f"merge: {file} does not exist: finish the workflow there first")
    metadata = read_metadata(file)
    if digest(read_parquet(file, kind=metadata.get("kind", ""))) != metadata.get("digest"):
        raise UserError(
            f"merge: {file} is corrupt (digest mismatch); make it again where it was made"
        )
    if not name.startswith("generate/"):
        return
    try:
        spec, code = parse_json(metadata["spec"]), metadata["code"]
        if not isinstance(spec, dict) or "kind" not in spec:
            raise ValueError
    except (KeyError, ValueError):
        raise UserError(
            f"merge: {file} does not say how it was made; make it again where it was made"
        ) from None
    _same_spec(settings, name, file, spec)
    made_by = {"generate": code}
    if not spec.get("policy_files"):
        entries = policy_entries({"kind": spec["kind"], **spec.get("parameters", {})})
        kinds = " around ".join(inner["kind"] for _, inner in entries)
        made_by[kinds] = spec.get("policy_digest", "")
    for part, found in made_by.items():
        known, first = codes.setdefault(part, (found, file))
        if found != known:
            raise UserError(
                f"merge: {first} and {file} were made by different code: run the older ones again "
                "with the newer version"
            )


def _same_spec(settings: Mapping[str, Any], name: str, file: Path, spec: Mapping[str, Any]) -> None:
    from kvfidelity.pipeline.staleness import differing_setting

    home = Path(str(file)[: -len(name)])
    wildcards = dict(zip(RUN_FIELDS, name.split("/")[1:], strict=False))
    if reason := differing_setting(spec, run_spec(settings, home, **wildcards)):
        raise UserError(
            f"merge: {file} was made with {reason}: merge with the configuration that the runs "
            "were made with"
        )


def _same_dialogues(settings: Mapping[str, Any]) -> None:
    """Check that a dialogue number, such as 003, means the same dialogue in all folders."""
    for pair in sorted({(cell.model, cell.dataset) for cell in cells(settings)}):
        manifest = f"dialogues/{'/'.join(pair)}/{MANIFEST}"
        files = [Path(folder) / manifest for folder in settings["merge"]]
        existing = [file for file in files if file.is_file()]
        for file in existing[1:]:
            if _manifest(file) != _manifest(existing[0]):
                raise UserError(
                    f"merge: {existing[0]} and {file} differ: the folders' dialogues are not the "
                    "same and cannot be compared; extract them from one file with one `select`"
                )


def _manifest(file: Path) -> dict[str, Any]:
    """A manifest without the path of the data on that machine, and what its runs asked of it."""
    try:
        content: dict[str, Any] = read_json(file)
        if not isinstance(content, dict) or not isinstance(content.get("provenance", {}), dict):
            raise ValueError("it is no manifest")
    except (OSError, ValueError) as error:
        raise UserError(f"merge: {file} cannot be read ({error}): make it again there") from None
    content.get("provenance", {}).pop("path", None)
    for name in ("not_reached", "code", "settings"):
        content.pop(name, None)
    return content


def _summary(settings: Mapping[str, Any], found: Mapping[str, list[Path]]) -> dict[str, Any]:
    from kvfidelity.records.artifacts import read_metadata

    taken: dict[str, int] = defaultdict(int)
    also_in: list[str] = []
    differing: list[str] = []
    for run in run_keys(settings):
        name = f"generate/{run}/turns.parquet"
        [origin] = found[name]
        folders = [Path(folder) for folder in settings["merge"] if Path(folder) / name != origin]
        taken[str(origin)[: -len(name) - 1]] += 1
        others = [folder / name for folder in folders if (folder / name).is_file()]
        if others:
            also_in.append(run)
        digests = {read_metadata(file).get("digest") for file in (origin, *others)}
        if len(digests) > 1:
            differing.append(run)
    return {"runs": dict(taken), "also_in": also_in, "differing": differing}
