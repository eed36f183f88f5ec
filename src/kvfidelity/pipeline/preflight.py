"""What can be known of the inputs in milliseconds, checked before the first job is planned.

An input is checked where a job may still need it: results that were copied from elsewhere need no
weights. Everything that is wrong is listed at once, one line each: the key, the file, the remedy.
What only a job can find out, it says itself, once.
"""

from __future__ import annotations

import ast
import json
import os
from collections.abc import Iterator, Mapping
from itertools import groupby
from pathlib import Path
from typing import Any

from kvfidelity.analysis.claims_file import read_claims_file
from kvfidelity.bounded_json import read_json
from kvfidelity.cache.architectures import check_architecture
from kvfidelity.errors import UserError
from kvfidelity.pipeline.rule_params import policy_parameters, selection_params
from kvfidelity.pipeline.setting_schemas import policy_entries, policy_schemas
from kvfidelity.pipeline.sources import Fetched, fetched_of
from kvfidelity.pipeline.staleness import notes_of
from kvfidelity.pipeline.workflow_files import CLAIMS, RUBRICS, WORKFLOW, rubric_file, workflow_file
from kvfidelity.records.grid import Cell, cells, run_keys
from kvfidelity.suggestions import did_you_mean
from kvfidelity.worker.gpus import visible_gpus

NO_HEALING = "none"
#: A model's files without its weights.
MODEL_FILES = ("config.json",)
TOKENIZERS = ("tokenizer.json", "tokenizer.model")
WEIGHT_INDEX = "model.safetensors.index.json"
#: The beginning of a file that stands for a large one that was not downloaded.
LFS_POINTER = b"version https://git-lfs"
GGUF_MAGIC = b"GGUF"
#: Linux takes 131,072 characters as one argument, which the command of a shell is.
LONGEST_FILES = 120_000
#: They change what fp32 products on a GPU come to, and no artifact would say so.
PRECISION_VARIABLES = ("NVIDIA_TF32_OVERRIDE", "TORCH_ALLOW_TF32_CUBLAS_OVERRIDE")


def refuse_faulty_inputs(
    settings: Mapping[str, Any],
    results: Path,
    *,
    computes_here: bool,
    root: Path = Path(),
    prefix: Path = Path(),
) -> None:
    """Check every input that the configuration names.

    Args:
        settings: the checked configuration.
        results: the folder of its results, relative to `root`.
        computes_here: whether jobs run on this machine, so that its GPUs are theirs.
        root: the working directory of the workflow.
        prefix: of a module, see `sources.Fetched`.

    Raises:
        UserError: everything that is wrong, one line each.
    """
    found = list(faults(settings, results, computes_here=computes_here, root=root, prefix=prefix))
    if found:
        raise UserError("\n".join(found))


def faults(
    settings: Mapping[str, Any],
    results: Path,
    *,
    computes_here: bool,
    root: Path = Path(),
    prefix: Path = Path(),
) -> Iterator[str]:
    """What is wrong with the inputs, one line each."""
    yield from _claims(workflow_file(CLAIMS, root))
    yield from _rubrics(settings, root)
    if settings["merge"]:
        return
    yield from _policy_files(settings, root)
    yield from _healings(settings, computes_here=computes_here)
    yield from _long_commands(settings, results)
    grid = cells(settings)
    open_pairs = {(cell.model, cell.dataset) for cell in _unfinished(settings, root / results)}
    used, wanted = (
        {(section, name) for pair in pairs for section, name in _sources(settings, *pair)}
        for pairs in ({(cell.model, cell.dataset) for cell in grid}, open_pairs)
    )
    for item in fetched_of(settings, root, prefix):
        key = (item.section, item.name)
        if key in used and key in wanted and item.local is not None and not item.folder.exists():
            yield from _local(item)
    for model, dataset in sorted(open_pairs):
        yield from _count(settings, model, dataset, results, root, prefix)
    if computes_here:
        for model in sorted({model for model, _ in open_pairs}):
            yield from _device(model, settings["models"][model])


def _sources(settings: Mapping[str, Any], model: str, dataset: str) -> Iterator[tuple[str, str]]:
    """Models and datasets that a cell needs: its own, and what its model is fine-tuned from."""
    yield "models", model
    yield "datasets", dataset
    if (adapter := settings["models"][model].get("adapter")) is not None:
        yield "models", adapter["base"]
        yield "datasets", adapter["data"]


def same_but_for_their_names(settings: Mapping[str, Any]) -> list[str]:
    """Entries of one section that the grid runs and that say the same: the same results twice."""
    found, grid = [], cells(settings)
    fields = {"policies": "policy", "thresholds": "threshold"}
    for section, field in (fields | {"models": "model", "datasets": "dataset"}).items():
        first: dict[str, str] = {}
        used = {getattr(cell, field) for cell in grid}
        for name, entry in settings[section].items():
            if name not in used:
                continue
            filled = entry if section != "policies" else {**entry, **policy_parameters(entry)}
            same = json.dumps({**filled, "label": None}, sort_keys=True)
            other = first.setdefault(same, name)
            if other != name:
                found.append(f"{section}: {other} and {name} differ in name only")
    return found


def _healings(settings: Mapping[str, Any], *, computes_here: bool) -> Iterator[str]:
    """Cells whose healing cannot act under their trigger, positions or policy."""
    healed = {
        name: entry["healing"]
        for name, entry in settings["policies"].items()
        if entry.get("healing", NO_HEALING) != NO_HEALING
    }
    if not healed:
        return
    # They import torch, for which other configurations need not wait.
    from kvfidelity.cache.healing import build_healing
    from kvfidelity.cache.healing.registry import without_healing
    from kvfidelity.cache.policies import Policy, build_policy

    gpus = computes_here and bool(visible_gpus())
    policies: dict[str, Policy | None] = {}
    for name in healed:
        own = without_healing(settings["policies"][name])[0]
        kind = own.pop("kind")
        try:
            policies[name] = build_policy(kind, own)
        except UserError:  # of a file of the user's: it is looked at when its runs start
            policies[name] = None
    found: dict[str, None] = {}
    for cell in cells(settings):
        if cell.policy not in healed:
            continue
        device = settings["models"][cell.model]["device"]
        try:
            build_healing(healed[cell.policy]).check(
                settings["thresholds"][cell.threshold]["trigger"],
                cell.positions,
                on_gpu=device.startswith("cuda") or (device == "auto" and gpus),
                policy=policies[cell.policy],
            )
        except UserError as error:
            found[f"policies.{cell.policy}.healing: {error}"] = None
    yield from found


def _long_commands(settings: Mapping[str, Any], results: Path) -> Iterator[str]:
    """Jobs that measure and judge all runs of a dialogue are given the runs' files by name."""
    for (model, dataset), found in groupby(
        cells(settings), lambda cell: (cell.model, cell.dataset)
    ):
        runs = [cell.run_key("000") for cell in found]
        length = sum(len(f"{results}/generate/{run}/turns.parquet ") for run in runs)
        if length > LONGEST_FILES:
            yield (
                f"grid: {model} and {dataset} have {len(runs)} cells, whose files' names are "
                f"{length} characters together, and a command may have {LONGEST_FILES}: split the "
                "grid into several configurations"
            )


def _unfinished(settings: Mapping[str, Any], results: Path) -> list[Cell]:
    """Cells of which a run, or the dialogues, are still to be made."""
    missing = set()
    for key in run_keys(settings):
        if not (results / "generate" / key / "turns.parquet").exists():
            missing.add(key.rpartition("/")[0])
    return [
        cell
        for cell in cells(settings)
        if cell.run_key("").rstrip("/") in missing
        or not (results / "dialogues" / cell.model / cell.dataset / "pool.parquet").exists()
    ]


def _local(item: Fetched) -> Iterator[str]:
    """What is wrong with a local file or folder."""
    assert item.local is not None
    key, given = f"{item}.path", item.entry["path"]
    if not item.local.exists():
        kind = "model" if item.section == "models" else "dataset"
        yield f"{key}: {kind} {given!r} does not exist{_hint(given, item.local)}"
    elif not os.access(item.local, os.R_OK):
        yield f"{key}: {given!r} cannot be read; give yourself access to it"
    elif item.local.is_file():
        yield from (f"{key}: {given!r} {fault}" for fault in _file(item))
    elif item.section == "datasets" and not any(item.local.iterdir()):
        yield f"{key}: the folder {given!r} is empty; name one with dialogues"
    elif item.section == "models":
        yield from (f"{key}: {given!r} {fault}" for fault in _model_folder(item.local))


def _hint(given: str, path: Path) -> str:
    if given.startswith("~") or "$" in given:
        return "; ~ and $ are not replaced here, write the whole path"
    if path.is_symlink():
        return f": it is a link to {path.readlink()}, which is gone; correct it"
    if given != given.strip():
        return "; it begins or ends with a space"
    where = "" if Path(given).is_absolute() else f" in {Path().absolute()}"
    return f"{where}; correct `path`"


def _file(item: Fetched) -> Iterator[str]:
    assert item.local is not None
    with item.local.open("rb") as handle:
        start = handle.read(len(LFS_POINTER))
    if not start:
        yield "is empty; name a file with content"
    elif start == LFS_POINTER:
        yield "is a Git LFS pointer, not the file itself; run `git lfs pull` there"
    elif item.section == "models" and not start.startswith(GGUF_MAGIC):
        yield "is not a GGUF file; name a GGUF file or a folder with config.json"


def _model_folder(folder: Path) -> Iterator[str]:
    missing = [name for name in MODEL_FILES if not (folder / name).is_file()]
    if not any((folder / name).is_file() for name in TOKENIZERS):
        missing.append(TOKENIZERS[0])
    weights = [file for file in sorted(folder.iterdir()) if file.suffix == ".safetensors"]
    if not weights:
        missing.append("*.safetensors")
    if missing:
        yield f"lacks {', '.join(missing)}; copy the whole model there"
    for file in sorted(folder.iterdir()):
        if file.is_symlink() and not file.exists():
            yield f"has a link {file.name} to {file.readlink()}, which is gone; copy the file"
        elif file in weights and file.stat().st_size < 9:
            yield f"has an empty {file.name}; copy it again"
        elif file in weights:
            with file.open("rb") as handle:
                if handle.read(len(LFS_POINTER)) == LFS_POINTER:
                    yield f"has a Git LFS pointer as {file.name}; run `git lfs pull` there"
    try:
        yield from _model_config(folder)
    except (ValueError, OSError, AttributeError, TypeError) as error:
        yield f"has JSON that cannot be read ({error}); copy it again"


def _model_config(folder: Path) -> Iterator[str]:
    index = folder / WEIGHT_INDEX
    if index.is_file():
        named = set(read_json(index)["weight_map"].values())
        gone = sorted(name for name in named if not (folder / name).exists())
        if gone:
            yield f"lacks {', '.join(gone)}, which {WEIGHT_INDEX} names; copy the whole model there"
    if (folder / "config.json").is_file():
        try:
            check_architecture(read_json(folder / "config.json"))
        except UserError as error:
            yield f"cannot be used: {error}"


def _device(model: str, entry: Mapping[str, Any]) -> Iterator[str]:
    key, device = f"models.{model}.device", entry["device"]
    gpus = visible_gpus()
    if device.startswith("cuda"):
        number = int(device.partition(":")[2] or 0)
        if not gpus:
            yield (
                f"{key}: {device}, but there is no NVIDIA GPU here; write `auto` or `cpu`, "
                "or plan for another machine with `snakemake -n --jobs 1`"
            )
        elif number >= len(gpus):
            yield f"{key}: {device}, but the GPUs here are 0 to {len(gpus) - 1}; correct it"
    if gpus and device != "cpu" and entry["dtype"] == "float32":
        for name in PRECISION_VARIABLES:
            if os.environ.get(name, "0") not in ("", "0"):
                yield f"{key}: the environment sets {name}, which makes float32 inexact; unset it"


def _count(
    settings: Mapping[str, Any], model: str, dataset: str, results: Path, root: Path, prefix: Path
) -> Iterator[str]:
    """More dialogues than the selection left, where they were selected with today's settings."""
    manifest = root / results / "dialogues" / model / dataset / "manifest.json"
    try:
        known = json.loads(manifest.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return
    notes = notes_of("dialogues", selection_params(settings, dataset))
    if {key: known.get(key) for key in notes} != notes:
        return
    record = Fetched("datasets", dataset, settings["datasets"][dataset], root, prefix)
    if record.configured.is_file() and "fetched_again" in record.configured.read_text("utf-8"):
        return
    count, kept = settings["datasets"][dataset]["count"], known["kept"]
    if count > kept:
        yield (
            f"datasets.{dataset}.count: {count} is more than the {kept} dialogues that pass "
            f"`select` for model {model} ({manifest}); lower it, or relax `select`"
        )


def _policy_files(settings: Mapping[str, Any], root: Path) -> Iterator[str]:
    """User-defined policies import PyTorch, so their files are read and not run here."""
    kinds, literal, broken = set(policy_schemas()), True, False
    for number, name in enumerate(settings["policy_files"]):
        key, file = f"policy_files.{number}: {name!r}", root / name
        if not file.is_file():
            broken = True
            yield f"{key} does not exist; correct its name"
            continue
        if file.suffix != ".py":
            broken = True
            yield f"{key} is not a Python file; its name must end in .py"
            continue
        try:
            tree = ast.parse(file.read_bytes(), name)
        except (SyntaxError, ValueError) as error:
            broken = True
            line = getattr(error, "lineno", None)
            yield f"{key} is not valid Python, line {line}: {getattr(error, 'msg', error)}"
            continue
        found = list(_kinds(tree))
        literal = literal and bool(found) and None not in found
        kinds.update(kind for kind in found if kind is not None)
    if broken or not literal:
        return
    for name, outer in settings["policies"].items():
        for path, entry in policy_entries(outer):
            if (kind := entry["kind"]) not in kinds:
                where = ".".join(("policies", name, *path))
                yield f"{where}: unknown kind {kind!r}{did_you_mean(kind, kinds)}"


def _kinds(tree: ast.Module) -> Iterator[str | None]:
    """What the classes of a file say of their `kind`; None where it is computed."""
    for node in (node for node in tree.body if isinstance(node, ast.ClassDef)):
        for line in node.body:
            targets = line.targets if isinstance(line, ast.Assign) else []
            targets = [line.target] if isinstance(line, ast.AnnAssign) else targets
            if any(isinstance(target, ast.Name) and target.id == "kind" for target in targets):
                value = getattr(line, "value", None)
                text = value.value if isinstance(value, ast.Constant) else None
                yield text if isinstance(text, str) else None


def _rubrics(settings: Mapping[str, Any], root: Path) -> Iterator[str]:
    for name in settings["judging"]:
        rubric = settings["judges"][name]["rubric"]
        if not rubric_file(rubric, root).is_file():
            folders = (root / RUBRICS, WORKFLOW / RUBRICS)
            known = sorted({file.stem for folder in folders for file in folder.glob("*.md")})
            file = f"{RUBRICS}/{rubric}.md"
            yield f"judges.{name}.rubric: {file} does not exist{did_you_mean(rubric, known)}"


def _claims(file: Path) -> Iterator[str]:
    try:
        read_claims_file(file)
    except UserError as error:
        yield from str(error).splitlines()
