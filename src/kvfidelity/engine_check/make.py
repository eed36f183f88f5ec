"""Makes the probe set of a model."""

from __future__ import annotations

import json
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from kvfidelity.decoding.engine import Engine
from kvfidelity.dialogues.pool import Turn
from kvfidelity.engine_check.bookkeeping import Bookkeeping, known_for
from kvfidelity.engine_check.expected import all_expected, rope_base
from kvfidelity.engine_check.probes import Probe, ProbeSet, read_json_lines
from kvfidelity.engine_check.schedules import Schedule, Sizes, schedules
from kvfidelity.errors import UserError
from kvfidelity.models.checksums import PROVENANCE


def make_probe_set(
    engine: Engine, dialogues: Sequence[Sequence[int]], sizes: Sizes, source: dict[str, Any]
) -> ProbeSet:
    """The probe set of a model, in fp32 on a CPU.

    Args:
        engine: the model in fp32 on a CPU.
        dialogues: token ids of some conversations; the probes' conversations are cut from them, and
            the longest repeats them if they are too short.
        source: what is known of the model's files; it goes into the header.

    Raises:
        UserError: no dialogue, or a model that is not in fp32 on a CPU.
    """
    if engine.device.type != "cpu" or str(engine.model.dtype) != "torch.float32":
        raise UserError(
            f"expected values are computed in float32 on a CPU, not in {engine.model.dtype} on "
            f"{engine.device.type}"
        )
    heads = engine.model.config.num_key_value_heads
    possible = known_for(rope_base(engine))
    planned: dict[str, list[Schedule]] = {}
    for name, schedule in schedules(sizes, heads):
        planned.setdefault(name, []).append(schedule)
    probes, faults = [], set()
    for index, (name, of_conversation) in enumerate(planned.items()):
        first = of_conversation[0].evictions[0].after + 1
        longest = max(schedule.scored for schedule in of_conversation)
        tokens = _cut(dialogues, index, first + longest)
        for schedule in (Schedule("no_eviction", (), longest), *of_conversation):
            scored = (first, first + schedule.scored)
            kind, kept = schedule.kind, schedule.evictions
            probes.append(Probe(f"{name}_{kind}", name, kind, tokens[: scored[1]], scored, kept))
            if schedule.faults:
                faults.add(probes[-1].name)

    def known(probe: Probe) -> list[Bookkeeping]:
        return [each for each in possible if probe.name in faults or not each.is_fault]

    made = tuple(all_expected(engine, probes, known))
    header = {
        "model": source,
        "window": engine.window,
        "kv_heads": heads,
        "dtype": "float32",
        "versions": {name: version(name) for name in ("kvfidelity", "torch", "transformers")},
        "look_for": {each.name: each.look_for for each in possible},
    }
    return ProbeSet(header, made)


def model_source(folder: Path) -> dict[str, Any]:
    """Name and SHA-256 of a model folder's weights, from its provenance."""
    file = folder / PROVENANCE
    known = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    digests = known.get("files", {})
    weights = {name: sha for name, sha in digests.items() if name.endswith(".safetensors")}
    return {"name": folder.name, "revision": known.get("revision"), "weights": weights}


def read_dialogues(engine: Engine, file: Path) -> list[list[int]]:
    """Token ids of each conversation of a file in ShareGPT's format, by the chat template.

    Raises:
        UserError: a line that is no conversation of that format.
    """
    dialogues = []
    for number, line in read_json_lines(file, "a file of dialogues"):
        try:
            texts = [str(message["value"]) for message in line["conversations"]]
        except (KeyError, TypeError):
            raise UserError(
                f"{file}, line {number}: no `conversations` with a `value` in each message"
            ) from None
        turns = [Turn(*pair) for pair in zip(texts[::2], texts[1::2], strict=False)]
        segments = engine.segmenter.segments(turns)
        dialogues.append([i for part in segments for i in (*part.prompt_ids, *part.reply_ids)])
    return dialogues


def _cut(dialogues: Sequence[Sequence[int]], index: int, count: int) -> tuple[int, ...]:
    """The first `count` tokens from dialogue number `index` on, from the first again at the end."""
    if not any(dialogues):
        raise UserError("there is no dialogue to make probes of")
    tokens: list[int] = []
    while len(tokens) < count:
        tokens += dialogues[index % len(dialogues)]
        index += 1
    return tuple(tokens[:count])
