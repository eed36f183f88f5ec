"""How often intervals and decisions are wrong, by simulation: the table of docs/metrics.md.

python benchmarks/intervals.py                    # the full table, about ten minutes on one core
python benchmarks/intervals.py --samples 200      # a rough one
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from typing import NamedTuple

import numpy as np

from kvfidelity.analysis.decisions import CONTRADICTED, SUPPORTED, decide
from kvfidelity.analysis.shares import clustered_share
from kvfidelity.analysis.statistics import Estimate, Floats, clustered_mean

SIZES = (3, 6, 10, 15, 20, 40, 64)
TURNS = 4
#: Every mean is 1, so that a margin of 1 is the truth.
DISTRIBUTIONS: dict[str, Callable[[np.random.Generator, int], Floats]] = {
    "normal": lambda rng, n: rng.normal(1, 1, n),
    "t3": lambda rng, n: 1 + rng.standard_t(3, n),
    "lognormal": lambda rng, n: rng.lognormal(0, 1, n) / np.exp(0.5),
    "bimodal": lambda rng, n: 1 + rng.choice([-2.0, 2.0], n) + rng.normal(0, 0.5, n),
    "spike at zero": lambda rng, n: np.where(rng.random(n) < 0.8, 0.0, rng.exponential(5, n)),
    # Losses are hardly ever exactly equal: then a spike has an interval.
    "spike near zero": lambda rng, n: (
        np.where(rng.random(n) < 0.8, 0.0, rng.exponential(5, n)) + rng.normal(0, 0.01, n)
    ),
}
#: No rule of few dialogues is right here: they may hold none of those that make the mean.
LIMITS: dict[str, Callable[[np.random.Generator, int], Floats]] = {
    "spike, wider": lambda rng, n: (
        np.where(rng.random(n) < 0.8, 0.0, rng.exponential(5, n)) + rng.normal(0, 0.3, n)
    ),
    "one in twenty": lambda rng, n: np.where(rng.random(n) < 0.95, 0.0, 20) + rng.normal(0, 0.3, n),
}
MEANS = DISTRIBUTIONS | LIMITS
#: Shares: what a dialogue's questions have in common is normal on the logit scale, or all of it.
SHARES: dict[str, Callable[[np.random.Generator, int], Floats]] = {
    "share 0.7": lambda rng, n: 1 / (1 + np.exp(-rng.normal(1, 0.8, n))),
    "share, all or none": lambda rng, n: (rng.random(n) < 0.9).astype(float),
}


class Rates(NamedTuple):
    """Shares of samples: the interval holds the truth; it lies above or below it; without interval;
    a conclusion beyond the true margin is drawn, by kind; that a mean is beyond it whose long tail
    is on the other side; at margin 0, if the mean is 0, a difference is found."""

    covered: float
    too_high: float
    too_low: float
    missing: float
    false_above: float
    false_below: float
    false_within: float
    false_opposite: float
    null: float


def sample(
    rng: np.random.Generator, draw: Callable[[np.random.Generator, int], Floats], dialogues: int
) -> tuple[Floats, Floats, np.ndarray]:
    """Values, weights and dialogues of turns: dialogues of very unequal length, as they are."""
    names = np.repeat(np.arange(dialogues).astype(str), TURNS)
    weights = np.repeat(rng.lognormal(0, 0.7, dialogues), TURNS) * rng.uniform(0.5, 1.5, names.size)
    return np.repeat(draw(rng, dialogues), TURNS), weights, names


def rates(estimates: Sequence[Estimate], null: Sequence[Estimate], truth: float) -> Rates:
    """Args: estimates of `truth`, and of 0 for the test of no difference."""
    rows = [asdict(found) for found in estimates]
    known = [row for row in rows if row["low"] is not None]
    above = [decide("above", truth, row)[0] for row in rows]
    within = [decide("within", truth, row)[0] for row in rows]
    opposite = [decide("above", truth, reflected(one, truth))[0] for one in estimates]
    found = [decide(way, 0, asdict(one))[0] for one in null for way in ("above", "below")]
    total = len(rows)
    return Rates(
        1 - sum(not row["low"] <= truth <= row["high"] for row in known) / total,
        sum(row["low"] > truth for row in known) / total,
        sum(row["high"] < truth for row in known) / total,
        1 - len(known) / total,
        above.count(SUPPORTED) / total,
        above.count(CONTRADICTED) / total,
        within.count(SUPPORTED) / total,
        opposite.count(SUPPORTED) / total,
        found.count(SUPPORTED) / max(1, len(null)),
    )


def reflected(found: Estimate, truth: float) -> dict[str, object]:
    """The estimate that the same values on the other side of the truth would give."""
    row = asdict(found)
    ends = {"low": "high", "high": "low", "strict_low": "strict_high", "strict_high": "strict_low"}
    turned = {one: _turned(row[other], truth) for one, other in ends.items()}
    core = tuple(_turned(end, truth) for end in reversed(found.core))
    return row | turned | {"sign": None, "largest": None, "core": core}


def _turned(value: float | None, truth: float) -> float | None:
    return None if value is None else 2 * truth - value


def of_means(name: str, dialogues: int, samples: int, resamples: int, seed: int = 0) -> Rates:
    """Rates of `clustered_mean` for one distribution of dialogues."""
    rng = np.random.default_rng([seed, dialogues, *name.encode()])
    drawn = [sample(rng, MEANS[name], dialogues) for _ in range(samples)]
    kept = {"resamples": resamples, "seed": seed}
    null = [(values - 1, weights, names) for values, weights, names in drawn]
    return rates(
        [clustered_mean(*one, **kept) for one in drawn],
        [clustered_mean(*one, **kept) for one in null],
        1.0,
    )


def of_shares(name: str, dialogues: int, samples: int, seed: int = 0) -> Rates:
    """Rates of `clustered_share`, and as its null of differences between two runs."""
    rng = np.random.default_rng([seed, dialogues, *name.encode()])
    truth = float(SHARES[name](rng, 200_000).mean())
    estimates, null = [], []
    for _ in range(samples):
        names = np.repeat(np.arange(dialogues).astype(str), TURNS)
        level = np.repeat(SHARES[name](rng, dialogues), TURNS)
        one, other = ((rng.random(names.size) < level).astype(float) for _ in range(2))
        estimates.append(clustered_share(one, np.ones(names.size), names))
        null.append(clustered_share(one - other, np.ones(names.size), names, paired=True))
    return rates(estimates, null, truth)


def table(samples: int, resamples: int, sizes: Sequence[int]) -> Iterator[str]:
    """Markdown, line by line, in percent."""
    head = ["values", "dialogues", "covered", "too high", "too low", "no interval"]
    head += ["false above", "false below", "false within", "false opposite", "difference found"]
    yield f"| {' | '.join(head)} |"
    yield "|---" * len(head) + "|"
    for name in (*MEANS, *SHARES):
        for size in sizes:
            found = (
                of_means(name, size, samples, resamples)
                if name in MEANS
                else of_shares(name, size, samples)
            )
            numbers = " | ".join(f"{100 * rate:.1f}" for rate in found)
            yield f"| {name} | {size} | {numbers} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--samples", type=int, default=2000)
    parser.add_argument("--resamples", type=int, default=2000)
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES)
    options = parser.parse_args()
    for line in table(options.samples, options.resamples, options.sizes):
        print(line, flush=True)


if __name__ == "__main__":
    main()
