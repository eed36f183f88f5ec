"""What an engine answered to a probe set: log-probabilities, top-k lists, or greedy tokens alone.

The file is JSON Lines with one probe a line, or Parquet with one scored token a row;
docs/engines.md describes both.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kvfidelity.engine_check.probes import Expected, Probe, ProbeSet, read_json_lines
from kvfidelity.errors import UserError

PARQUET = b"PAR1"
#: A log-probability may exceed 0 by rounding.
ABOVE_ZERO = 1e-2
#: No vocabulary is as large.
LARGEST_TOKEN = 2**31


class AnswerKind(StrEnum):
    """What an engine can tell of its next-token distribution."""

    LOGPROB = "logprob"
    TOP = "top"
    GREEDY = "greedy"


@dataclass(frozen=True)
class Answer:
    """An engine's answer to one probe.

    values: of each scored token, its log-probability in nats (logprob); the most likely tokens,
    each with its log-probability (top); or the most likely token (greedy).
    """

    kind: AnswerKind
    values: Sequence[Any] = field(repr=False)

    def deviations(self, expected: Expected, probe: Probe) -> NDArray[np.float64]:
        """By how much it deviates from an expected answer, for each scored token [m].

        Signed, in nats; of greedy tokens 1 where the token is another one, else 0.
        """
        if self.kind is AnswerKind.GREEDY:
            differs = np.asarray(self.values, dtype=np.int64) != expected.greedy
            return np.asarray(differs, dtype=np.float64)
        if self.kind is AnswerKind.LOGPROB:
            return np.asarray(self.values, dtype=np.float64) - expected.logprob
        tokens = probe.tokens[slice(*probe.scored)]
        rows = zip(self.values, tokens, expected.greedy, strict=True)
        pairs = zip(expected.logprob, expected.greedy_logprob, strict=True)
        return np.array([_of_top(*row, *pair) for row, pair in zip(rows, pairs, strict=True)])


def _of_top(
    top: Mapping[int, float], token: int, greedy: int, logprob: float, greedy_logprob: float
) -> float:
    """The deviation of a top-k list: of the scored token if it is listed; else of the token that
    should be the most likely. If neither is listed, the least that is known: the latter is less
    likely than the last of the list, and no token should be more likely than the latter."""
    if token in top:
        return top[token] - logprob
    if greedy in top:
        return top[greedy] - greedy_logprob
    too_low = min(0.0, min(top.values()) - greedy_logprob)
    too_high = max(0.0, max(top.values()) - greedy_logprob)
    return max(too_low, too_high, key=abs)


def read_answers(path: Path, probe_set: ProbeSet) -> dict[str, Answer]:
    """Answers by the name of their probe.

    Raises:
        UserError: a missing file, an unknown probe, another number of values than scored tokens, a
            value that is not finite or no log-probability, answers of different kinds.
    """
    answers: dict[str, Answer] = {}
    for where, line in _lines(path):
        name = str(line.get("probe"))
        probe = probe_set.find(name)
        if probe is None:
            raise UserError(f"{where}: the probe set has no probe {name!r}")
        if name in answers:
            raise UserError(f"{where}: probe {name} is answered twice")
        answers[name] = _answer(line, probe, f"{where}, probe {name}")
    kinds = sorted({answer.kind.value for answer in answers.values()})
    if len(kinds) != 1:
        raise UserError(f"{path}: answers are of one kind, not {' and '.join(kinds) or 'none'}")
    return answers


def _lines(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    if path.is_file():
        with path.open("rb") as handle:
            if handle.read(len(PARQUET)) == PARQUET:
                yield from _parquet_lines(path)
                return
    for number, line in read_json_lines(path, "a file of answers"):
        yield f"{path}, line {number}", line


def _parquet_lines(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Rows of Parquet (probe, token_index, one of logprob, top, greedy) as lines of one probe."""
    try:
        import pyarrow.parquet as pq
        from pyarrow.lib import ArrowException
    except ImportError:
        raise UserError(
            f"{path} is Parquet, which needs pyarrow: pip install pyarrow, or write JSON Lines"
        ) from None
    try:
        table = pq.read_table(path)
    except (ArrowException, OSError) as error:
        raise UserError(f"{path} is no readable Parquet file: {error}") from None
    kinds = [kind.value for kind in AnswerKind if kind in table.column_names]
    if not {"probe", "token_index"} <= set(table.column_names) or not kinds:
        raise UserError(
            f"{path} has columns {', '.join(table.column_names)}; it needs probe, token_index and "
            f"one of {', '.join(AnswerKind)}"
        )
    if len(kinds) > 1:
        raise UserError(f"{path}: answers are of one kind, not {' and '.join(kinds)}")
    kind = kinds[0]
    by_probe: dict[str, list[dict[str, Any]]] = {}
    for row in table.select(["probe", "token_index", kind]).to_pylist():
        by_probe.setdefault(row["probe"], []).append(row)
    for name, rows in by_probe.items():
        if any(not isinstance(row["token_index"], int) for row in rows):
            raise UserError(f"{path}, probe {name}: token_index is a column of integers")
        rows.sort(key=lambda row: row["token_index"])
        indices = [row["token_index"] for row in rows]
        if indices != list(range(indices[0], indices[0] + len(rows))):
            raise UserError(f"{path}, probe {name}: token_index has gaps or repeats")
        yield (
            str(path),
            {"probe": name, "scored": [indices[0], indices[-1] + 1], kind: [r[kind] for r in rows]},
        )


def _answer(line: Mapping[str, Any], probe: Probe, where: str) -> Answer:
    kinds = [kind for kind in AnswerKind if kind in line]
    if len(kinds) != 1:
        raise UserError(f"{where}: a line has one of {', '.join(AnswerKind)}")
    kind, values = kinds[0], line[kinds[0]]
    scored = line.get("scored")
    if scored is not None and scored != list(probe.scored):
        asked = list(probe.scored)
        raise UserError(f"{where}: answers tokens {scored}, the probe asks for {asked}")
    if not isinstance(values, list) or len(values) != probe.count:
        found = len(values) if isinstance(values, list) else "no list of"
        raise UserError(
            f"{where}: {found} values of {kind}, the probe asks for {probe.count}, of the tokens "
            f"{probe.scored[0]} to {probe.scored[1] - 1}"
        )
    checked = [
        _value(kind, value, f"{where}, token {index}")
        for index, value in enumerate(values, start=probe.scored[0])
    ]
    return Answer(kind, checked)


def _value(kind: AnswerKind, value: Any, where: str) -> Any:
    try:
        if kind is AnswerKind.LOGPROB:
            return _logprob(value, where)
        if kind is AnswerKind.GREEDY:
            return _token(value)
        if not isinstance(value, list):
            raise TypeError
        top = {_token(token): _logprob(logprob, where) for token, logprob in value}
    except (TypeError, ValueError):
        raise UserError(f"{where}: {str(value)[:40]!r} is no {kind}") from None
    if len(top) != len(value) or not top:
        raise UserError(f"{where}: {'a token twice in a' if top else 'an empty'} top list")
    return top


def _token(value: Any) -> int:
    """A token id; Parquet may hold it as a float."""
    if isinstance(value, bool | str) or not 0 <= value < LARGEST_TOKEN or value != int(value):
        raise ValueError
    return int(value)


def _logprob(value: Any, where: str) -> float:
    if isinstance(value, bool | str):
        raise ValueError
    number = float(value)
    if not math.isfinite(number) or number > ABOVE_ZERO:
        raise UserError(
            f"{where}: {value} is no log-probability; it must be finite and not above 0 (natural "
            "logarithm). If the engine computes NaN here, that is its fault to be found first"
        )
    return number
