"""A hundred simulated engines of the default model: does `kvfidelity check` name them rightly?

    python benchmarks/engine_check.py MODEL results/probes/smollm2-135m.jsonl

Each is the core with a bookkeeping, at a precision. It takes long: bfloat16 and float16 are slow on
a processor without them. With `--answers FOLDER` a stopped command goes on where it was.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

from kvfidelity.decoding.engine import Engine
from kvfidelity.engine_check.answers import AnswerKind
from kvfidelity.engine_check.bookkeeping import CORRECT, MODES, Bookkeeping, known_for
from kvfidelity.engine_check.expected import all_expected, rope_base
from kvfidelity.engine_check.probes import Probe, ProbeSet, read_probe_set, write_probe_set
from kvfidelity.engine_check.verdict import Verdict, judge
from tests.engine_check.simulated import (
    PRECISIONS,
    REROTATED,
    answers_of,
    as_answers,
    at_precision,
    by_bookkeeping,
    in_place,
    other_tokens,
)

#: Faults that 4-bit rounding of these weights, 0.62 nats a token, hides.
HIDDEN_BY_ROUNDING = {("int4", "only_sinks_rerotated"), ("int4", "original_of_first_head")}
#: What an engine is, what it should be called (empty for a fault not known), and what was found.
Case = tuple[str, str, Verdict]


def played(
    engine: Engine, probe_set: ProbeSet, known: Sequence[Bookkeeping], folder: Path | None
) -> list[Probe]:
    """The probes as the engine answers them under each bookkeeping; those in the folder are read,
    the others are written there."""
    files = {probe.name: folder / f"{probe.name}.jsonl" for probe in probe_set if folder}
    done = {name: file for name, file in files.items() if file.is_file()}
    missing = [probe for probe in probe_set if probe.name not in done]
    computed = {name: read_probe_set(file).probes[0] for name, file in done.items()}
    for probe in all_expected(engine, missing, lambda probe: known):
        computed[probe.name] = probe
        if folder:
            write_probe_set(files[probe.name], ProbeSet({}, (probe,)))
    return [computed[probe.name] for probe in probe_set]


def modes_and_faults(
    engine: Engine, probe_set: ProbeSet, precision: str, folder: Path | None
) -> Iterator[Case]:
    """Every bookkeeping; the modes also with answers that tell less."""
    known = known_for(rope_base(engine))
    probes = played(engine, probe_set, known, folder and folder / precision)
    for name, computed in by_bookkeeping(probes, known):
        if (precision, name) in HIDDEN_BY_ROUNDING:
            continue
        kinds = [AnswerKind.LOGPROB]
        if name in MODES and precision != "int4":
            kinds += [AnswerKind.TOP, AnswerKind.GREEDY]
        for kind in kinds:
            verdict = judge(as_answers(computed, kind), probe_set)
            yield f"{name} at {precision}, {kind}", name, verdict


def others(engine: Engine, probe_set: ProbeSet, precision: str) -> Iterator[Case]:
    """Keys rotated in place, and an engine that keeps other tokens."""
    few = replace(probe_set, probes=tuple(p for p in probe_set if p.conversation == "medium"))
    played = replace(few, probes=tuple(map(other_tokens, few)))
    [(_, computed)] = answers_of(engine, played, [REROTATED])
    yield f"other tokens at {precision}", "", judge(as_answers(computed, AnswerKind.LOGPROB), few)
    if precision == "float32":
        for dtype in (torch.bfloat16, torch.float16):
            [(_, computed)] = answers_of(engine, few, [REROTATED], in_place(dtype))
            verdict = judge(as_answers(computed, AnswerKind.LOGPROB), few)
            yield f"rotated in place in {dtype}", "drift", verdict


def is_right(name: str, verdict: Verdict) -> bool:
    """Whether a verdict says what the engine is."""
    if verdict.passes() != (name in CORRECT):
        return False
    if name == "drift":
        return verdict.name == "rerotated" and verdict.drifts
    if name == "":
        return not (verdict.is_mode and verdict.decided)
    return verdict.name == name and (name not in MODES or verdict.is_mode)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("probes", type=Path)
    parser.add_argument("--precisions", nargs="+", choices=PRECISIONS, default=PRECISIONS)
    parser.add_argument("--only-others", action="store_true")
    parser.add_argument("--answers", type=Path, help="where computed answers are kept")
    options = parser.parse_args()
    whole = read_probe_set(options.probes)
    # The long conversation would take an hour.
    probe_set = replace(whole, probes=tuple(p for p in whole if p.conversation != "long"))
    engine = Engine.load(options.model, "float32", "cpu")
    right = count = 0
    for precision in options.precisions:
        simulated = at_precision(engine, precision)
        all_of_them = modes_and_faults(simulated, probe_set, precision, options.answers)
        parts = [] if options.only_others else [all_of_them]
        for cases in (*parts, others(simulated, probe_set, precision)):
            for engine_is, name, verdict in cases:
                count += 1
                right += is_right(name, verdict)
                word = "right" if is_right(name, verdict) else "WRONG"
                own = verdict.yardstick.mean
                print(f"{word}  {engine_is}: {verdict.name}, yardstick {own:.2g}", flush=True)
    print(f"{right} of {count}")


if __name__ == "__main__":
    main()
