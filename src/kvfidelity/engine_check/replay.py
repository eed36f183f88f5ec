"""Runs whose keep sets the engine chose: the core replays them under every bookkeeping."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kvfidelity.engine_check.probes import Probe, ProbeSet, read_evictions, read_json_lines
from kvfidelity.errors import UserError

#: Names of the rules in `rules`, which needs PyTorch.
NAMES = ("attention_blocks",)

if TYPE_CHECKING:
    from kvfidelity.decoding.engine import Engine


def replayed(file: Path, model: Path) -> ProbeSet:
    """The probe set of an engine's runs.

    Args:
        file: JSON Lines; each line has `probe` (a name), `tokens`, `scored`, the engine's answers,
            and `evictions` or a `rule` where tokens were evicted; see docs/engines.md.
        model: the model's folder.

    Raises:
        UserError: a malformed line, or a model that is not supported.
    """
    lines = [
        (f"{file}, line {number}", line) for number, line in read_json_lines(file, "a file of runs")
    ]
    probes = [(_run(line, where), _rule(line, where)) for where, line in lines]
    from kvfidelity.decoding.engine import Engine
    from kvfidelity.engine_check.rules import RULES

    engine = Engine.load(model, "float32", "cpu")
    return expected_of(
        engine,
        [
            replace(probe, evictions=(RULES[rule["name"]](engine, probe.tokens, rule),))
            if rule
            else probe
            for probe, rule in probes
        ],
    )


def expected_of(engine: Engine, probes: list[Probe]) -> ProbeSet:
    """The probes with what every bookkeeping answers."""
    from kvfidelity.engine_check.bookkeeping import known_for
    from kvfidelity.engine_check.expected import all_expected, rope_base

    probes = sorted(probes, key=lambda probe: probe.conversation)
    known = known_for(rope_base(engine))
    return ProbeSet({}, tuple(all_expected(engine, probes, lambda probe: known)))


def _rule(line: dict[str, Any], where: str) -> dict[str, Any] | None:
    rule = line.get("rule")
    if rule is not None and (not isinstance(rule, dict) or rule.get("name") not in NAMES):
        raise UserError(f"{where}: `rule` is an object with a `name`, {' or '.join(NAMES)}")
    return rule


def _run(line: dict[str, Any], where: str) -> Probe:
    try:
        start, stop = line["scored"]
        tokens = tuple(int(token) for token in line["tokens"])
        evictions = read_evictions(line.get("evictions", []))
        name = str(line["probe"])
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"{where}: a run has probe, tokens, scored and, if tokens were evicted, evictions "
            f"({type(error).__name__}: {error})"
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
        kind="repeated" if len(evictions) > 1 else "chosen",
        tokens=tokens,
        scored=(start, stop),
        evictions=evictions,
    )
