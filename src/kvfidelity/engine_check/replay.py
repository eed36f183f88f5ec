"""Runs whose keep sets the engine chose: the core replays them under every bookkeeping."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from kvfidelity.engine_check.probes import Probe, ProbeSet, read_evictions, read_json_lines
from kvfidelity.errors import UserError

if TYPE_CHECKING:
    from kvfidelity.decoding.engine import Engine


def replayed(file: Path, model: Path) -> ProbeSet:
    """The probe set of an engine's runs.

    Args:
        file: JSON Lines; each line has `probe` (a name), `tokens`, `scored`, `evictions` and the
            engine's answers; see docs/engines.md.
        model: the model's folder.

    Raises:
        UserError: a malformed line, or a model that is not supported.
    """
    probes = [_run(line, f"{file}, line {number}") for number, line in _lines(file)]
    from kvfidelity.decoding.engine import Engine

    return expected_of(Engine.load(model, "float32", "cpu"), probes)


def expected_of(engine: Engine, probes: list[Probe]) -> ProbeSet:
    """The probes with what every bookkeeping answers."""
    from kvfidelity.engine_check.bookkeeping import BOOKKEEPINGS
    from kvfidelity.engine_check.expected import all_expected

    probes = sorted(probes, key=lambda probe: probe.conversation)
    return ProbeSet({}, tuple(all_expected(engine, probes, lambda probe: BOOKKEEPINGS)))


def _lines(file: Path) -> list[tuple[int, dict[str, Any]]]:
    return list(read_json_lines(file, "a file of runs"))


def _run(line: dict[str, Any], where: str) -> Probe:
    try:
        start, stop = line["scored"]
        tokens = tuple(int(token) for token in line["tokens"])
        evictions = read_evictions(line["evictions"])
        name = str(line["probe"])
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"{where}: a run has probe, tokens, scored and evictions ({type(error).__name__}: "
            f"{error})"
        ) from None
    if not 0 < start < stop <= len(tokens):
        raise UserError(f"{where}: scored is {[start, stop]}, but there are {len(tokens)} tokens")
    if evictions and evictions[0].after > start - 1:
        raise UserError(
            f"{where}: token {start} is scored, but the first eviction comes after "
            f"{evictions[0].after} tokens: score from {evictions[0].after + 1} on"
        )
    return Probe(
        name=name,
        conversation=str(line.get("conversation", name)),
        kind="repeated" if len(evictions) > 1 else "chosen" if evictions else "no_eviction",
        tokens=tokens,
        scored=(start, stop),
        evictions=evictions,
    )
