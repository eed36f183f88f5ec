"""The runs of a configuration: the cross of its lists, with what is added and left out."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

from kvfidelity.cache.positions import PositionMode

POSITIONS: tuple[str, ...] = tuple(mode.value for mode in PositionMode)
BASELINE = "baseline"
#: Without an eviction all modes are equal; the baseline runs under this one.
BASELINE_POSITIONS = PositionMode.ORIGINAL.value
NO_THRESHOLD = "none"
#: What stage generate writes for each run, as Parquet files of these names.
GENERATED = ("turns", "evictions")
#: What is known of the dialogues of one model and dataset, in their folder.
MANIFEST = "manifest.json"
#: Folder of a model's files without its weights, in the folder of the dialogues it tokenized.
TOKENIZER = "tokenizer"


class RunKey(NamedTuple):
    """What tells a run from all others, as written in its path below a stage's folder."""

    model: str
    dataset: str
    policy: str
    positions: str
    threshold: str
    seed: str
    dialogue: str
    """Its number in the pool, such as "007"; empty where a cell is meant."""

    def path(self) -> str:
        """Such as smollm2-135m/sharegpt/gist/stale/half/0/007."""
        return "/".join(self)

    @classmethod
    def from_path(cls, path: str) -> RunKey:
        """The key of what `path` returns.

        Raises:
            TypeError: the path has another number of parts.
        """
        return cls._make(path.split("/"))

    @property
    def cell(self) -> Cell:
        """The cell that the run is of."""
        return Cell(*self[:-2], int(self.seed))


#: The key's parts by name; all but the last are those of a cell.
RUN_FIELDS = RunKey._fields
CELL_FIELDS = RUN_FIELDS[:-1]
#: What tables of means have one row for: a cell with all its seeds.
CELL_COLUMNS = CELL_FIELDS[:-1]


@dataclass(frozen=True, order=True)
class Cell:
    """What runs on all dialogues of a dataset have in common.

    A policy that never evicts has one cell, at `original` and threshold `none`.
    """

    model: str
    dataset: str
    policy: str
    positions: str
    threshold: str
    seed: int

    def run_key(self, dialogue: str) -> str:
        """The path of the cell's run on a dialogue."""
        values = (self.model, self.dataset, self.policy, self.positions, self.threshold)
        return "/".join((*values, str(self.seed), dialogue))


def cells(settings: Mapping[str, Any]) -> list[Cell]:
    """All cells, sorted, each once, with the baseline of every model, dataset and seed."""
    grid = settings["grid"]
    lists = {
        "model": _selected(grid["models"], settings["models"]),
        "dataset": _selected(grid["datasets"], settings["datasets"]),
        "policy": _selected(grid["policies"], settings["policies"]),
        "positions": _selected(grid["positions"], POSITIONS),
        "threshold": _selected(grid["thresholds"], settings["thresholds"]),
        "seed": grid["seeds"],
    }
    found = set(_cross(lists, settings))
    for extra in grid["include"]:
        found |= set(_cross(lists | {key: [value] for key, value in extra.items()}, settings))
    found = {cell for cell in found if not any(_matches(cell, out) for out in grid["exclude"])}
    found |= {_baseline_cell(cell, settings) for cell in found}
    return sorted(found)


def dialogues(settings: Mapping[str, Any], dataset: str) -> list[str]:
    """Numbers of the dialogues that are run, such as "007"."""
    return [f"{number:03d}" for number in range(settings["datasets"][dataset]["count"])]


def run_keys(settings: Mapping[str, Any]) -> list[str]:
    """Paths of all runs, dialogue by dialogue, so that runs that share a prefix are neighbours."""
    keys = [
        (cell.model, cell.dataset, dialogue, cell.run_key(dialogue))
        for cell in cells(settings)
        for dialogue in dialogues(settings, cell.dataset)
    ]
    return [path for *_, path in sorted(keys)]


def dialogue_of(run: str) -> str:
    """What the runs of one dialogue through one model share, such as smollm2-135m/sharegpt/007.

    Text metrics, verdicts and comparisons of these runs are one file, and made by one job.
    """
    key = RunKey.from_path(run)
    return f"{key.model}/{key.dataset}/{key.dialogue}"


def runs_by_dialogue(settings: Mapping[str, Any]) -> dict[str, list[str]]:
    """Paths of all runs by `dialogue_of`, both in the order of `run_keys`."""
    found: dict[str, list[str]] = {}
    for run in run_keys(settings):
        found.setdefault(dialogue_of(run), []).append(run)
    return found


def run_of_file(file: Path) -> str:
    """The path of the run that a file of stage generate is of."""
    return "/".join(file.parent.parts[-len(RUN_FIELDS) :])


def baseline_run_key(settings: Mapping[str, Any], run: str) -> str:
    """The path of the baseline that a run is compared with."""
    key = RunKey.from_path(run)
    return _baseline_cell(key.cell, settings).run_key(key.dialogue)


def compared_run_keys(settings: Mapping[str, Any]) -> list[str]:
    """Paths of all runs but the baselines."""
    return [run for run in run_keys(settings) if baseline_run_key(settings, run) != run]


def _cross(lists: Mapping[str, Sequence[Any]], settings: Mapping[str, Any]) -> Iterator[Cell]:
    for values in itertools.product(*lists.values()):
        cell = Cell(*values)
        if settings["policies"][cell.policy]["kind"] == BASELINE:
            cell = _never_evicting(cell, cell.policy)
        yield cell


def _baseline_cell(cell: Cell, settings: Mapping[str, Any]) -> Cell:
    name = next(
        (name for name, entry in settings["policies"].items() if entry["kind"] == BASELINE),
        BASELINE,
    )
    return _never_evicting(cell, name)


def _never_evicting(cell: Cell, policy: str) -> Cell:
    return Cell(cell.model, cell.dataset, policy, BASELINE_POSITIONS, NO_THRESHOLD, cell.seed)


def _selected(chosen: str | Sequence[str], known: Mapping[str, Any] | Sequence[str]) -> list[str]:
    return list(known) if chosen == "all" else list(chosen)


def _matches(cell: Cell, pattern: Mapping[str, Any]) -> bool:
    values = asdict(cell)
    return all(values[key] == value for key, value in pattern.items())
