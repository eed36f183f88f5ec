"""Runs whose keep sets the engine chose: the core replays them under every bookkeeping."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kvfidelity.engine_check.answers import read_answers
from kvfidelity.engine_check.probes import Probe, ProbeSet, read_evictions, read_json_lines
from kvfidelity.engine_check.verdict import check_both
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
        UserError: a malformed line or answer, no run with or none without evictions, or a model
            that is not supported.
    """
    lines = [
        (f"{file}, line {number}", line) for number, line in read_json_lines(file, "a file of runs")
    ]
    probes = [(_run(line, where), _rule(line, where)) for where, line in lines]
    # Before minutes of computing.
    read_answers(file, ProbeSet({}, tuple(probe for probe, _ in probes)))
    evicting = sum(bool(rule or probe.evictions) for probe, rule in probes)
    check_both(evicting, len(probes) - evicting)
    from kvfidelity.decoding.engine import Engine
    from kvfidelity.engine_check.rules import RULES

    engine = Engine.load(model, "float32", "cpu")
    for index, ((where, _), (probe, rule)) in enumerate(zip(lines, probes, strict=True)):
        if rule:
            eviction = RULES[rule["name"]](engine, probe.tokens, rule)
            probe = replace(probe, evictions=(eviction,))
            _check_scored(probe, where)
            probes[index] = probe, None
    return expected_of(engine, [probe for probe, _ in probes])


def expected_of(engine: Engine, probes: list[Probe]) -> ProbeSet:
    """The probes with what every bookkeeping answers.

    Raises:
        UserError: a probe that is not one of the engine's model, or not of its conversation.
    """
    from kvfidelity.engine_check.bookkeeping import known_for
    from kvfidelity.engine_check.expected import all_expected, rope_base

    probes = sorted(probes, key=lambda probe: probe.conversation)
    longest: dict[str, tuple[int, ...]] = {}
    for probe in probes:
        _check_model(engine, probe)
        longest[probe.conversation] = max(
            longest.get(probe.conversation, ()), probe.tokens, key=len
        )
    for probe in probes:
        if probe.tokens != longest[probe.conversation][: len(probe.tokens)]:
            raise UserError(
                f"run {probe.name}: its tokens are not those of the other runs of conversation "
                f"{probe.conversation}; leave `conversation` out"
            )
    known = known_for(rope_base(engine))
    return ProbeSet({}, tuple(all_expected(engine, probes, lambda probe: known)))


def _check_model(engine: Engine, probe: Probe) -> None:
    """Refuse token ids and numbers of keep sets that the model does not have."""
    config = engine.model.config
    if not 0 <= min(probe.tokens) <= max(probe.tokens) < config.vocab_size:
        raise UserError(
            f"run {probe.name}: token ids go from {min(probe.tokens)} to {max(probe.tokens)}, the "
            f"model has {config.vocab_size}: it is another model's run"
        )
    for each in probe.evictions:
        rows = config.num_hidden_layers if each.by_layer else config.num_key_value_heads
        if len(each.keep) not in (1, rows):
            what = "layers" if each.by_layer else "kv heads"
            raise UserError(
                f"run {probe.name}: the eviction after {each.after} has {len(each.keep)} keep "
                f"sets, the model has {rows} {what}"
            )


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
    probe = Probe(
        name=name,
        conversation=str(line.get("conversation", name)),
        kind="repeated" if len(evictions) > 1 else "chosen",
        tokens=tokens,
        scored=(start, stop),
        evictions=evictions,
    )
    _check_scored(probe, where)
    return probe


def _check_scored(probe: Probe, where: str) -> None:
    """Refuse tokens that are scored before the first eviction, and evictions after the last."""
    if not probe.evictions:
        return
    first, last = probe.evictions[0].after, probe.evictions[-1].after
    if first >= probe.scored[0]:
        raise UserError(
            f"{where}: token {probe.scored[0]} is scored, but the first eviction comes after "
            f"{first} tokens: score from {first + 1} on"
        )
    if last >= probe.scored[1]:
        raise UserError(
            f"{where}: the last token scored is {probe.scored[1] - 1}, but an eviction comes after "
            f"{last} tokens: leave it out"
        )
