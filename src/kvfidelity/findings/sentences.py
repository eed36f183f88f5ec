"""The sentences of the page. Each takes its numbers, and what it says of them, from the tables."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import polars as pl

from kvfidelity.findings.published import PublishedRun, of_question
from kvfidelity.findings.verdicts import NOT_MEASURED
from kvfidelity.report.formatting import count, decimal, interval, percent, signed

STALE, CORRECTED = "stale", "rerotated"
GIST = "sliding_window_gist"
#: What the paper compares, and where: the larger threshold.
PAPER_POLICY, PAPER_GIST, PAPER_THRESHOLD = "attention_top_99", "gist_2000", "5600tok"
#: The budget that the first sentences are about, and the policy that keeps the beginning.
BUDGET, BEGINNING = "2000tok", "gist"
#: Nats per token by which a recommended policy may lose more than the best.
ALLOWED = 0.05
SIZES = "Both models have fewer than a billion parameters, so this says nothing about larger ones."


def number(row: Mapping[str, Any] | None, name: str = "", digits: int = 2) -> str:
    """ "+4.58 [+4.10, +5.05]": `mean` with `low` and `high`, or NAME with NAME_low and NAME_high."""
    value = row and row[name or "mean"]
    if row is None or value is None:
        return NOT_MEASURED
    ends = {end: row[f"{name}_{end}" if name else end] for end in ("low", "high")}
    return f"{signed(value, digits)} {interval(ends | {'n_dialogues': row['n_dialogues']}, digits)}"


def cell(
    run: PublishedRun, policy: str, positions: str, threshold: str, table: str = "policies"
) -> dict[str, Any] | None:
    """The row of a cell; None if there is not one."""
    rows = run.tables[table].filter(policy=policy, positions=positions, threshold=threshold)
    return rows.row(0, named=True) if rows.height == 1 else None


def five(runs: Sequence[PublishedRun]) -> list[str]:
    """The first five sentences of the page."""
    return [
        _joined(runs, "paper_reference", "The paper's setting", paper),
        _joined(runs, "equal_budgets", "Equal budgets", budgets),
        _joined(runs, "equal_budgets", "Recall", recall),
        _windows(runs),
        recommendation(runs),
    ]


def _joined(
    runs: Sequence[PublishedRun],
    finding: str,
    title: str,
    clause: Callable[[PublishedRun], str],
) -> str:
    found = [run for run in runs if run.finding.name == finding]
    clauses = [f"{run.name}: {clause(run)}" for run in found]
    return f"**{title}.** {'; '.join(clauses) or NOT_MEASURED}."


def paper(run: PublishedRun) -> str:
    """What attention-ranked eviction at 99% loses with stale and corrected positions."""
    stale = cell(run, PAPER_POLICY, STALE, PAPER_THRESHOLD)
    corrected = cell(run, PAPER_POLICY, CORRECTED, PAPER_THRESHOLD)
    gist = cell(run, PAPER_GIST, STALE, PAPER_THRESHOLD)
    if stale is None or corrected is None or stale["mean"] is None or corrected["mean"] is None:
        return NOT_MEASURED
    if stale["low"] is None or stale["low"] <= 0:
        why = "which is not surely a loss"
    else:
        share = 1 - corrected["mean"] / stale["mean"]
        most = "most" if share > 0.5 else "less than half"
        why = f"{most} of it due to positions: with corrected ones {number(corrected)}"
    return (
        f"keeping 99% by attention with stale positions costs {number(stale)} nats per token, "
        f"{why}; the first 2,000 tokens alone cost {number(gist)}"
    )


def budgets(run: PublishedRun) -> str:
    """How many policies lose more than the beginning alone, with stale and corrected positions."""
    parts = []
    for mode, named in ((STALE, "stale"), (CORRECTED, "corrected")):
        rows = run.tables["policies"].filter(positions=mode, threshold=BUDGET).drop_nulls("mean")
        gist = cell(run, BEGINNING, mode, BUDGET)
        others = rows.filter(pl.col("policy") != BEGINNING)
        if gist is None or gist["mean"] is None or others.is_empty():
            return NOT_MEASURED
        worse = others.filter(pl.col("mean") > gist["mean"])
        best = rows.sort("mean", "policy").row(0, named=True)
        parts.append(
            f"with {named} positions {worse.height} of {others.height} policies lose more than the "
            f"beginning alone ({number(gist)}), {best['policy']} least ({number(best)})"
        )
    return "of 5,600 tokens 2,000 kept, " + ", ".join(parts)


def recall(run: PublishedRun) -> str:
    """Which policy forgets least and most of planted facts, with corrected positions."""
    rows = _forgetting(run, BUDGET)
    if rows.is_empty():
        return NOT_MEASURED
    least, most = rows.row(0, named=True), rows.row(-1, named=True)
    return (
        f"of {least['n_questions']} planted facts the baseline answers "
        f"{percent(least['recalled_baseline'])} right, after 2,000 tokens are kept with corrected "
        f"positions {_forgets(least)} and {_forgets(most)}, the least and the most forgetful of "
        f"{rows.height}"
    )


def _forgetting(run: PublishedRun, threshold: str) -> pl.DataFrame:
    """The leaderboard's corrected cells of a budget, the least forgetful first."""
    rows = run.tables["leaderboard"].filter(positions=CORRECTED, threshold=threshold)
    return rows.drop_nulls("margin_lost").sort("margin_lost", "policy")


def _forgets(row: Mapping[str, Any]) -> str:
    return (
        f"{row['policy']} {percent(row['recalled'])} (margin lost {number(row, 'margin_lost')} "
        "nats)"
    )


def _windows(runs: Sequence[PublishedRun]) -> str:
    found = of_question(list(runs), "window", "window_changes")
    clauses = [f"{run.name}: {window(run)}" for run in found]
    return f"**Through the window.** {'; '.join(clauses) or NOT_MEASURED}."


def window(run: PublishedRun) -> str:
    """How NLL changes past the trained window with nothing evicted."""
    changes = {row["change"]: row for row in run.tables["window_changes"].to_dicts()}
    at, beyond = (changes.get(f"nll_change_{where}_window") for where in ("at", "beyond"))
    past = beyond or at
    if past is None or past["low"] is None:
        return NOT_MEASURED
    if past["low"] > 0:
        way = "replies get less likely"
    elif past["high"] < 0:
        way = "replies get likelier"
    else:
        way = "no change is sure"
    return (
        f"with nothing evicted {way} past {run.facts['trained_window']:,} tokens: "
        f"{number(at)} nats per token just past it, {number(beyond)} from 1.25 to 1.5 times it"
    )


def recommendation(runs: Sequence[PublishedRun]) -> str:
    """Which policy at which budget, and when the beginning alone is right."""
    found = of_question(list(runs), "budgets", "leaderboard")
    if not found:
        return f"**What to use.** {NOT_MEASURED}."
    parts = [part for run in found for part in _advice(run)]
    return f"**What to use.** {'; '.join(parts)}. {SIZES}"


def _advice(run: PublishedRun) -> list[str]:
    parts = []
    rows = run.tables["leaderboard"]
    for threshold in sorted(rows["threshold"].unique(), key=len):
        kept = f"{int(threshold.removesuffix('tok')):,}"
        part = rows.filter(positions=CORRECTED, threshold=threshold)
        best = part["mean"].min()
        fit = part.filter(pl.col("mean") <= pl.lit(best) + ALLOWED).drop_nulls("margin_lost")
        if fit.height:
            row = fit.sort("margin_lost", "policy").row(0, named=True)
            parts.append(
                f"{run.name}, {kept} of 5,600 tokens: correct the positions and use "
                f"{row['policy']} (excess NLL {number(row)}, margin lost "
                f"{number(row, 'margin_lost')}), the least forgetful within {ALLOWED} nats of the "
                "least loss"
            )
    stale = run.tables["policies"].filter(positions=STALE).drop_nulls("mean")
    for threshold in sorted(stale["threshold"].unique(), key=len)[:1]:
        first = stale.filter(threshold=threshold).sort("mean", "policy").row(0, named=True)
        what = "the beginning alone" if first["policy"] == BEGINNING else first["policy"]
        parts.append(
            f"{run.name}: if positions stay stale, {what} loses least ({number(first)} at "
            f"{int(threshold.removesuffix('tok')):,} tokens)"
        )
    return parts


def cost(run: PublishedRun) -> str:
    """Bytes and seconds of the cells against the baseline."""
    rows = run.tables["timing"]
    base = rows.filter(policy="baseline")
    evicting = rows.filter(pl.col("policy") != "baseline")
    if base.is_empty() or evicting.is_empty():
        return NOT_MEASURED
    row = base.row(0, named=True)
    least, most = evicting["cache_bytes_end"].min(), evicting["cache_bytes_end"].max()
    saved = [1 - value / row["cache_bytes_end"] for value in (most, least)]  # type: ignore[operator]
    return (
        f"evicting cells cache {_range(saved, percent)} less than the baseline at the end of a "
        f"turn, over {count(row['n_dialogues'], 'dialogue')}; the first token takes "
        f"{_ms(row['ttft_s'])} ms in the baseline and {_extent(evicting['ttft_s'])} ms where "
        f"something is evicted, a further token {_ms(row['tpot_s'])} and "
        f"{_extent(evicting['tpot_s'])} ms"
    )


def _ms(value: float | None) -> str:
    return decimal(None if value is None else 1000 * value, 1)


def _extent(values: pl.Series) -> str:
    return _range([values.min(), values.max()], _ms)  # type: ignore[list-item]


def _range(ends: Sequence[Any], text: Callable[[Any], str]) -> str:
    low, high = map(text, ends)
    return low if low == high else f"{low} to {high}"
