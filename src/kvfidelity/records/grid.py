"""The runs of a configuration: the cross of its lists, with what is added and left out."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

POSITIONS = ("stale", "original", "rerotated")
BASELINE = "baseline"
NO_THRESHOLD = "none"
#: Folder of a model's files without its weights, in the folder of the dialogues it tokenized.
TOKENIZER = "tokenizer"


@dataclass(frozen=True, order=True)
class Cell:
    """One run but for the dialogue; a policy that never evicts has one cell, at `original` and
    threshold `none`."""

    model: str
    dataset: str
    policy: str
    positions: str
    threshold: str
    seed: int

    def run_key(self, dialogue: str) -> str:
        """Its place below a stage's folder."""
        parts = (self.model, self.dataset, self.policy, self.positions, self.threshold)
        return "/".join((*parts, str(self.seed), dialogue))


def cells(settings: Mapping[str, Any]) -> list[Cell]:
    """All cells, sorted, each once; the never evicted run that all are compared with is among
    them for every model, dataset and seed that has any."""
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
    """Ordinals of the dialogues that are run."""
    return [f"{number:03d}" for number in range(settings["datasets"][dataset]["count"])]


def run_keys(settings: Mapping[str, Any]) -> list[str]:
    """Paths of all runs, dialogue included, dialogue by dialogue: what shares a prefix is near."""
    keys = [
        (cell.model, cell.dataset, dialogue, cell.run_key(dialogue))
        for cell in cells(settings)
        for dialogue in dialogues(settings, cell.dataset)
    ]
    return [path for *_, path in sorted(keys)]


def baseline_run_key(settings: Mapping[str, Any], run: str) -> str:
    """The path of the run that evicts nothing and that a run is compared with."""
    model, dataset, policy, positions, threshold, seed, dialogue = run.split("/")
    cell = Cell(model, dataset, policy, positions, threshold, int(seed))
    return _baseline_cell(cell, settings).run_key(dialogue)


def compared_run_keys(settings: Mapping[str, Any]) -> list[str]:
    """Paths of all runs that are compared with another one."""
    return [run for run in run_keys(settings) if baseline_run_key(settings, run) != run]


def _cross(lists: Mapping[str, Sequence[Any]], settings: Mapping[str, Any]) -> Iterator[Cell]:
    for values in itertools.product(*lists.values()):
        cell = Cell(*values)
        if settings["policies"][cell.policy]["kind"] == BASELINE:
            cell = Cell(cell.model, cell.dataset, cell.policy, "original", NO_THRESHOLD, cell.seed)
        yield cell


def _baseline_cell(cell: Cell, settings: Mapping[str, Any]) -> Cell:
    name = next(
        (name for name, entry in settings["policies"].items() if entry["kind"] == BASELINE),
        BASELINE,
    )
    return Cell(cell.model, cell.dataset, name, "original", NO_THRESHOLD, cell.seed)


def _selected(chosen: str | Sequence[str], known: Mapping[str, Any] | Sequence[str]) -> list[str]:
    return list(known) if chosen == "all" else list(chosen)


def _matches(cell: Cell, pattern: Mapping[str, Any]) -> bool:
    values = asdict(cell)
    return all(values[key] == value for key, value in pattern.items())
