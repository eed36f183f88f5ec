"""How much of a finished run's wall time was not model work, from Snakemake's own log.

    python benchmarks/startup.py .snakemake/log/*.log

Model work is the time in which at least one job of `generate` or `score_corruptions` ran, minus the
time to start and stop a job's client (`--client`, measured by timing `generate.py --help`) and to
load the model (`--load`). Fetching the model and the data, done once for all runs, is shown
separately. Times in the log are whole seconds.
"""

from __future__ import annotations

import argparse
import re
from datetime import datetime
from pathlib import Path

MOMENT = re.compile(r"^\[(\w{3} \w{3} +\d+ \d\d:\d\d:\d\d \d{4})\]$")
STARTED = re.compile(r"^(?:local)?rule (\w+):$")
ID = re.compile(r"^    jobid: (\d+)$")
ENDED = re.compile(r"^Finished jobid: (\d+) \(Rule: (\w+)\)$")
MODEL = ("generate", "score_corruptions")
FETCH = ("fetch_model", "fetch_dataset")


def intervals(log: str) -> dict[str, list[tuple[float, float]]]:
    """When the jobs of each rule ran, in seconds since the epoch."""
    now, rule = 0.0, ""
    start: dict[str, float] = {}
    spans: dict[str, list[tuple[float, float]]] = {}
    for line in log.splitlines():
        if moment := MOMENT.match(line):
            now = datetime.strptime(moment[1], "%a %b %d %H:%M:%S %Y").timestamp()
        elif started := STARTED.match(line):
            rule = started[1]
        elif (job := ID.match(line)) and rule:
            start[job[1]] = now
            rule = ""
        elif ended := ENDED.match(line):
            spans.setdefault(ended[2], []).append((start[ended[1]], now))
    return spans


def covered(spans: list[tuple[float, float]]) -> float:
    """Seconds in which at least one of the spans ran."""
    total, reached = 0.0, 0.0
    for start, stop in sorted(spans):
        total += max(0.0, stop - max(start, reached))
        reached = max(reached, stop)
    return total


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("log", type=Path)
    parser.add_argument("--client", type=float, default=0.1, help="seconds of a job")
    parser.add_argument("--load", type=float, default=5.0, help="seconds once")
    options = parser.parse_args()
    jobs = intervals(options.log.read_text())
    spans = [span for rule in jobs.values() for span in rule]
    wall = max(stop for _, stop in spans) - min(start for start, _ in spans)
    modelling = [span for rule in MODEL for span in jobs.get(rule, [])]
    work = covered(modelling) - options.client * len(modelling) - options.load
    others = [span for rule, ran in jobs.items() if rule not in FETCH for span in ran]
    fetching = covered(spans) - covered(others)
    print(f"wall {wall:.0f} s, of which fetching {fetching:.0f} s; model work {work:.0f} s")
    print(f"outside of model work: {1 - work / wall:.1%}", end="; ")
    print(f"of what follows fetching: {1 - work / (wall - fetching):.1%}")
    for rule, ran in jobs.items():
        others = [span for name, part in jobs.items() if name != rule for span in part]
        alone = covered([*others, *ran]) - covered(others)
        print(f"{rule:>18} {len(ran):>4} jobs, {covered(ran):>6.0f} s, alone {alone:>6.0f} s")


if __name__ == "__main__":
    main()
