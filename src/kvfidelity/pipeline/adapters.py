"""Models that are fine-tuned here: what their entries name, and what may be evaluated with them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from kvfidelity.dialogues.parts import TEST
from kvfidelity.pipeline.select_checks import select_faults
from kvfidelity.pipeline.setting_errors import shown
from kvfidelity.records.grid import cells
from kvfidelity.suggestions import did_you_mean


def adapter_faults(settings: Mapping[str, Any]) -> Iterator[str]:
    """What is wrong with `adapter` entries that fit their schema, one line each."""
    for name, entry in settings["models"].items():
        where = f"models.{name}.adapter"
        adapter = entry.get("adapter")
        if entry["source"] != "adapter":
            if adapter is not None:
                yield f"{where}: set `source: adapter`, or remove it"
            continue
        base = settings["models"].get(adapter["base"])
        if base is None:
            known = did_you_mean(adapter["base"], settings["models"])
            yield f"{where}.base: no {shown(adapter['base'])}{known}"
        elif base["source"] == "adapter":
            yield f"{where}.base: {adapter['base']} is fine-tuned itself; name its base"
        data = settings["datasets"].get(adapter["data"])
        if data is None:
            known = did_you_mean(adapter["data"], settings["datasets"])
            yield f"{where}.data: no {shown(adapter['data'])}{known}"
        elif data["join_tokens"] is not None:
            yield f"{where}.data: {_joined(adapter['data'])}"
        yield from select_faults(f"{where}.select", adapter["select"])
        least, most = adapter["retention"]
        if least > most:
            yield f"{where}.retention: {least} is more than {most}; write the least share first"


def evaluation_faults(settings: Mapping[str, Any]) -> Iterator[str]:
    """Cells in which a fine-tuned model would be evaluated on dialogues it was trained on."""
    pairs = sorted({(cell.model, cell.dataset) for cell in cells(settings)})
    for model, dataset in pairs:
        adapter = settings["models"][model].get("adapter")
        if adapter is None:
            continue
        entry, where = settings["datasets"][dataset], f"datasets.{dataset}"
        data = settings["datasets"][adapter["data"]]
        trained = data["select"]["split_seed"]
        if entry["select"]["split"] != TEST:
            yield (
                f"{where}.select.split: {model} is trained on dialogues of the development half, "
                f"so it is evaluated on the other: set {TEST}, or take {dataset} out of the grid"
            )
        elif entry["select"]["split_seed"] != trained:
            yield (
                f"{where}.select.split_seed: {model} is trained on a half of the dialogues that "
                f"split_seed {trained} (datasets.{adapter['data']}) makes; set it to {trained}"
            )
        elif entry["join_tokens"] is not None:
            yield f"{where}.join_tokens: {_joined(dataset)}"
        elif entry["format"] != data["format"] and _file(entry) == _file(data):
            yield (
                f"{where}.format: {entry['format']} reads the file that {model} is trained on as "
                f"{data['format']} (datasets.{adapter['data']}), so a dialogue may be in both "
                f"halves; write {data['format']}"
            )


def averaged_faults(settings: Mapping[str, Any]) -> Iterator[str]:
    """Trainings of the grid that tables would average as seeds of one arm, and that are not.

    Tables tell trainings by base model, arm and loss; those that share them may differ in their
    seed alone, and must.
    """
    trained: dict[tuple[str, ...], list[str]] = {}
    for model in dict.fromkeys(cell.model for cell in cells(settings)):
        adapter = settings["models"][model].get("adapter")
        if adapter is None:
            continue
        earlier = trained.setdefault(tuple(adapter[key] for key in ("base", "arm", "loss")), [])
        for other in earlier:
            entry, where = settings["models"][other]["adapter"], f"models.{model}.adapter"
            differ = [key for key in adapter if adapter[key] != entry[key]]
            if not differ:
                yield f"{where}: {other} is the same training; give it another `seed`"
            for key in differ:
                if key != "seed" and other == earlier[0]:
                    yield (
                        f"{where}.{key}: {shown(adapter[key])}, but {other} of the same base, arm "
                        f"and loss has {shown(entry[key])}; tables average these, so only their "
                        "seeds may differ: take one of them out of the grid"
                    )
        earlier.append(model)


def _file(entry: Mapping[str, Any]) -> dict[str, Any]:
    """Which file a dataset's entry names."""
    from kvfidelity.pipeline.rule_params import source_entry

    found = source_entry(entry)
    return found | {"path": str(Path(found["path"]).resolve())} if "path" in found else found


def _joined(dataset: str) -> str:
    return (
        f"{dataset} joins dialogues, and a joined one may be of another half than its own; "
        "set datasets.NAME.join_tokens to null where models are fine-tuned"
    )


def resolve_adapters(settings: Mapping[str, Any]) -> None:
    """Put into each `adapter` entry what its base and its data are: they are named elsewhere.

    So a fine-tuned model's entry says all that its weights depend on, as any model's entry does.
    """
    from kvfidelity.pipeline.rule_params import source_entry

    for entry in settings["models"].values():
        if entry["source"] != "adapter":
            continue
        adapter = entry["adapter"]
        data = settings["datasets"][adapter["data"]]
        adapter["base_source"] = source_entry(settings["models"][adapter["base"]])
        adapter["data_source"] = source_entry(data) | {"format": data["format"]}
        adapter["select"]["split_seed"] = data["select"]["split_seed"]
