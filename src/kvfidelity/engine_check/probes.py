"""A probe set: conversations, schedules of evictions, and the log-probabilities to expect.

The file is JSON Lines: a header, then one probe per line. docs/engines.md describes it. Nothing
heavy is imported: a probe set is read without PyTorch.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kvfidelity.atomic_files import write_text
from kvfidelity.errors import UserError

FORMAT, VERSION = "kvfidelity-probes", 1
#: Decimals of a log-probability in the file, in nats.
DECIMALS = 5


@dataclass(frozen=True)
class Eviction:
    """after: how many tokens have been fed. keep: half-open ranges of the token indices that stay,
    one list for all layers and heads, or one for each kv head (of every layer), or, if by_layer,
    one for each layer."""

    after: int
    keep: tuple[tuple[tuple[int, int], ...], ...]
    by_layer: bool = False


@dataclass(frozen=True)
class Expected:
    """What bookkeepings answer that cannot differ on a probe.

    names: those bookkeepings. logprob: of each scored token, in nats. greedy: the most likely token
    in its place. greedy_logprob: of that one, in nats. All [m].
    """

    names: tuple[str, ...]
    logprob: NDArray[np.float64]
    greedy: NDArray[np.int64]
    greedy_logprob: NDArray[np.float64]


@dataclass(frozen=True)
class Probe:
    """One conversation with one schedule.

    name: unique in the set. conversation: probes of one conversation have the same tokens, as far
    as they go. kind: of the keep sets. scored: first and last-plus-one index of the tokens whose
    log-probabilities are asked for.
    """

    name: str
    conversation: str
    kind: str
    tokens: tuple[int, ...]
    scored: tuple[int, int]
    evictions: tuple[Eviction, ...] = ()
    expected: tuple[Expected, ...] = field(default=(), repr=False)

    @property
    def count(self) -> int:
        """Number of scored tokens."""
        return self.scored[1] - self.scored[0]

    @property
    def per_head(self) -> bool:
        """Whether heads keep different tokens."""
        return any(len(each.keep) > 1 and not each.by_layer for each in self.evictions)

    @property
    def last_eviction(self) -> NDArray[np.int64]:
        """How many evictions came before each scored token, [m]."""
        after = np.array([eviction.after for eviction in self.evictions], dtype=np.int64)
        return np.searchsorted(after, np.arange(*self.scored), side="left").astype(np.int64)

    def expected_of(self, name: str) -> Expected:
        """What one bookkeeping answers."""
        return next(each for each in self.expected if name in each.names)


@dataclass(frozen=True)
class ProbeSet:
    """header: model, versions and sizes, see `expected.make_probe_set`."""

    header: dict[str, Any]
    probes: tuple[Probe, ...]

    def __iter__(self) -> Iterator[Probe]:
        return iter(self.probes)

    def find(self, name: str) -> Probe | None:
        """The probe of that name."""
        return next((probe for probe in self.probes if probe.name == name), None)

    def no_eviction(self, probe: Probe) -> Probe | None:
        """The probe of the same conversation in which nothing is evicted."""
        found = (each for each in self.probes if each.conversation == probe.conversation)
        return next((each for each in found if not each.evictions), None)


def write_probe_set(path: Path, probe_set: ProbeSet) -> None:
    """Write a probe set, whole or not at all."""
    lines = [{"format": FORMAT, "version": VERSION} | probe_set.header]
    lines += [_as_json(probe) for probe in probe_set]
    write_text(path, "".join(json.dumps(line, separators=(",", ":")) + "\n" for line in lines))


def read_probe_set(path: Path) -> ProbeSet:
    """Read a probe set.

    Raises:
        UserError: a missing file, another format or version, a line that is not a probe.
    """
    lines = list(read_json_lines(path, "a probe set"))
    number, header = lines[0]
    if header.pop("format", None) != FORMAT:
        raise UserError(f"{path} is no probe set: its first line must name format {FORMAT!r}")
    if (version := header.pop("version", None)) != VERSION:
        raise UserError(
            f"{path} is a probe set of version {version}, this check reads version {VERSION}: make "
            "the probe set again, or use the release of kvfidelity that made it"
        )
    probes = []
    for number, line in lines[1:]:
        try:
            probes.append(_probe(line))
        except (KeyError, TypeError, ValueError, IndexError) as error:
            reason = f"{type(error).__name__}: {error}"
            raise UserError(
                f"{path}, line {number}, is no probe ({reason}): fetch or make the file again"
            ) from None
    return ProbeSet(header, tuple(probes))


def read_json_lines(path: Path, what: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """Number and content of each line that is not empty.

    Raises:
        UserError: a missing or empty file, a line that is no JSON object.
    """
    if not path.is_file():
        raise UserError(f"{path} does not exist; it should be {what}")
    found = False
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise UserError(f"{path} is no text file; {what} is JSON Lines in UTF-8") from None
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip():
            continue
        try:
            content = json.loads(line)
        except ValueError as error:
            raise UserError(f"{path}, line {number}, is not JSON ({error})") from None
        if not isinstance(content, dict):
            raise UserError(f"{path}, line {number}, is no JSON object; {what} has one a line")
        found = True
        yield number, content
    if not found:
        raise UserError(f"{path} is empty; it should be {what}")


def read_evictions(lines: Sequence[dict[str, Any]]) -> tuple[Eviction, ...]:
    """Evictions of a JSON line: `[{"after": 255, "keep": [[[0, 4], [100, 128]]]}]`.

    Raises:
        KeyError, TypeError, ValueError: another form; ranges that are empty or out of order; an
            eviction before the one ahead of it, or one that keeps what is gone.
    """
    evictions: list[Eviction] = []
    for line in lines:
        keep = tuple(
            tuple((int(start), int(stop)) for start, stop in ranges) for ranges in line["keep"]
        )
        for ranges in keep:
            if not _in_order(ranges, line["after"]):
                raise ValueError(f"keep ranges {ranges} of the eviction after {line['after']}")
        if len({sum(stop - start for start, stop in ranges) for ranges in keep}) != 1:
            raise ValueError(f"rows of {line['after']} keep different numbers of tokens")
        eviction = Eviction(int(line["after"]), keep, bool(line.get("by_layer")))
        if evictions:
            _check_follows(eviction, evictions[-1])
        evictions.append(eviction)
    return tuple(evictions)


def _check_follows(eviction: Eviction, before: Eviction) -> None:
    """Refuse an eviction that cannot come after another."""
    if eviction.after < before.after:
        raise ValueError(f"the eviction after {eviction.after} follows that after {before.after}")
    held = [
        {token for start, stop in ranges for token in range(start, stop)} for ranges in before.keep
    ]
    same_rows = len(eviction.keep) == len(held) and eviction.by_layer == before.by_layer
    for row, ranges in enumerate(eviction.keep):
        kept = {token for start, stop in ranges for token in range(start, min(stop, before.after))}
        gone = kept - (held[row] if same_rows else held[0].intersection(*held[1:]))
        if gone:
            raise ValueError(
                f"the eviction after {eviction.after} keeps token {min(gone)}, which was evicted "
                "before"
            )


def _in_order(ranges: Sequence[tuple[int, int]], after: int) -> bool:
    """Whether ranges are not empty, follow each other and end before a token index."""
    starts = [start for start, _ in ranges]
    stops = [stop for _, stop in ranges]
    return (
        bool(ranges)
        and all(start < stop for start, stop in ranges)
        and all(stop <= start for stop, start in zip(stops, starts[1:], strict=False))
        and starts[0] >= 0
        and stops[-1] <= after
    )


def _as_json(probe: Probe) -> dict[str, Any]:
    return {
        "probe": probe.name,
        "conversation": probe.conversation,
        "kind": probe.kind,
        "scored": list(probe.scored),
        "evictions": [
            {"after": each.after, "keep": [list(map(list, ranges)) for ranges in each.keep]}
            | ({"by_layer": True} if each.by_layer else {})
            for each in probe.evictions
        ],
        "tokens": list(probe.tokens),
        "expected": [
            {
                "of": list(each.names),
                "logprob": _rounded(each.logprob),
                "greedy": each.greedy.tolist(),
                "greedy_logprob": _rounded(each.greedy_logprob),
            }
            for each in probe.expected
        ],
    }


def _probe(line: dict[str, Any]) -> Probe:
    start, stop = line["scored"]
    expected = tuple(
        Expected(
            tuple(each["of"]),
            np.array(each["logprob"], dtype=np.float64),
            np.array(each["greedy"], dtype=np.int64),
            np.array(each["greedy_logprob"], dtype=np.float64),
        )
        for each in line["expected"]
    )
    for each in expected:
        if any(len(part) != stop - start for part in (each.logprob, each.greedy)):
            raise ValueError("expected values and scored tokens differ in number")
    return Probe(
        name=line["probe"],
        conversation=line["conversation"],
        kind=line["kind"],
        tokens=tuple(line["tokens"]),
        scored=(int(start), int(stop)),
        evictions=read_evictions(line["evictions"]),
        expected=expected,
    )


def _rounded(values: NDArray[np.float64]) -> list[float]:
    return [round(float(value), DECIMALS) for value in values]
