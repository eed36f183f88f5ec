"""Takes what another run of this working directory has computed already.

Runs lie in folders of their own, each whole: it can be copied, checked, merged or deleted alone.
Where two configurations ask for the same computation, its artifacts are copied instead of made
again. It is the same if an artifact's own notes say that it was made with the settings, the code,
the dialogues and the model that this configuration would make it with, and as many runs at once:
no reply depends on that, but times do.
"""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence, Set
from pathlib import Path
from typing import Any

from kvfidelity.atomic_files import replacing, write_json
from kvfidelity.errors import UserError
from kvfidelity.pipeline.rule_params import own_policy
from kvfidelity.pipeline.staleness import Expectations
from kvfidelity.records.grid import (
    GENERATED,
    MANIFEST,
    TOKENIZER,
    RunKey,
    cells,
    run_keys,
    runs_by_dialogue,
)
from kvfidelity.records.notes import BATCH_SIZE

POOL = "pool.parquet"
#: What the note `hardware` is where no GPU computed.
CPU_ARCHITECTURES = ("x86_64", "aarch64", "arm64")
#: Of a manifest, what it says of the thresholds of the run that it was made for.
OF_ITS_RUN = "not_reached"


def reuse(settings: Mapping[str, Any], results: Path, others: Sequence[Path]) -> Counter[Path]:
    """Copy what is missing in a results folder and what others have of it.

    Args:
        settings: the checked configuration.
        results: its folder.
        others: folders of other runs, relative to the working directory.

    Returns:
        The number of runs taken from each folder.
    """
    missing = [run for run in run_keys(settings) if not (results / _turns(run)).exists()]
    taken: Counter[Path] = Counter()
    pairs = {(cell.model, cell.dataset) for cell in cells(settings)}
    for other in others if missing else ():
        expected = Expectations(settings, other)
        same = {pair for pair in pairs if _same_dialogues("/".join(pair), results, other, expected)}
        from_here = {
            run
            for run in missing
            if RunKey.from_path(run)[:2] in same
            and not (results / _turns(run)).exists()
            and _take_run(settings, run, results, other, expected)
        }
        _take_following(settings, from_here, results, other, expected)
        taken[other] += len(from_here)
    return +taken


def _turns(run: str) -> str:
    return f"generate/{run}/turns.parquet"


def _same_dialogues(pair: str, results: Path, other: Path, expected: Expectations) -> bool:
    """Whether two folders have the same dialogues; they are copied if one folder has none."""
    here, there = (folder / "dialogues" / pair for folder in (results, other))
    if not (there / POOL).is_file() or not _is_current(there / POOL, expected):
        return False
    if (here / POOL).is_file():
        return _digest(here / POOL) == _digest(there / POOL)
    try:
        manifest = json.loads((there / MANIFEST).read_text(encoding="utf-8"))
        shutil.copytree(there / TOKENIZER, here / TOKENIZER, dirs_exist_ok=True)
    except (OSError, ValueError):
        return False
    manifest.pop(OF_ITS_RUN, None)
    write_json(here / MANIFEST, manifest)
    _copy(there / POOL, here / POOL)
    return True


def _take_run(
    settings: Mapping[str, Any], run: str, results: Path, other: Path, expected: Expectations
) -> bool:
    """Copy a run, if it is what would be made."""
    generated = [f"generate/{run}/{kind}.parquet" for kind in GENERATED]
    if not all(_is_current(other / name, expected) for name in generated):
        return False
    if not _made_alike(settings, run, other):
        return False
    if not _take_check(settings, RunKey.from_path(run).policy, results, other):
        return False
    # The turns last: a run is there once they are.
    for name in reversed(generated):
        _copy(other / name, results / name)
    return True


def _made_alike(settings: Mapping[str, Any], run: str, other: Path) -> bool:
    """Whether a run's seconds are those that this configuration would measure."""
    from kvfidelity.records.artifacts import read_metadata

    notes = read_metadata(other / _turns(run))
    if notes.get(BATCH_SIZE) != str(settings["session"]["batch_size"]):
        return False
    device: str = settings["models"][RunKey.from_path(run).model]["device"]
    on_cpu = notes.get("hardware") in CPU_ARCHITECTURES
    return device == "auto" or (device == "cpu") == on_cpu


def _following(settings: Mapping[str, Any], dialogue: str) -> Iterator[str]:
    """What was measured and judged of a dialogue's runs."""
    yield f"metrics/{dialogue}/metrics.parquet"
    for judge in settings["judging"]:
        yield f"judge/{judge}/{dialogue}/verdicts.parquet"
        yield f"comparisons/{judge}/{dialogue}/comparisons.parquet"


def _take_following(
    settings: Mapping[str, Any], taken: Set[str], results: Path, other: Path, expected: Expectations
) -> None:
    """Copy what was made of dialogues of which all runs were taken from the other folder."""
    for dialogue, runs in runs_by_dialogue(settings).items():
        if taken >= set(runs):
            for name in _following(settings, dialogue):
                if _is_current(other / name, expected):
                    _copy(other / name, results / name)


def _take_check(settings: Mapping[str, Any], policy: str, results: Path, other: Path) -> bool:
    """Copy what says that a user-defined policy can be built; a built-in one has nothing."""
    own = own_policy(settings, policy)
    if own is None:
        return True
    name = f"checks/policies/{policy}.json"
    try:
        same: bool = json.loads((other / name).read_text(encoding="utf-8")) == own
    except (OSError, ValueError):
        return False
    if same and not (results / name).exists():
        _copy(other / name, results / name)
    return same


def _is_current(file: Path, expected: Expectations) -> bool:
    try:
        return file.is_file() and expected.stale(file) is None
    except UserError:
        return False


def _digest(file: Path) -> str | None:
    from kvfidelity.records.artifacts import read_metadata

    try:
        return read_metadata(file).get("digest")
    except UserError:
        return None


def _copy(file: Path, target: Path) -> None:
    with replacing(target) as temporary:
        shutil.copyfile(file, temporary)
