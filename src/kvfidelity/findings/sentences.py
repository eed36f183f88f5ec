"""The sentences of the page. Each takes its numbers, and what it says of them, from the tables."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import polars as pl

from kvfidelity.findings import advice
from kvfidelity.findings.published import PublishedRun, of_question
from kvfidelity.findings.sources import MODES, RECALL, Source, kept, sources
from kvfidelity.findings.verdicts import NOT_MEASURED, verdict
from kvfidelity.findings.wording import (
    BEGINNING,
    CORRECTED,
    PAPER_GIST,
    PAPER_POLICY,
    PAPER_THRESHOLD,
    RECENT,
    STALE,
    apart,
    cell,
    number,
    per_model,
)
from kvfidelity.report.formatting import count, decimal, percent


def five(runs: Sequence[PublishedRun]) -> list[str]:
    """The first five sentences of the page."""
    return [
        _paper_setting(runs),
        _sourced(sources(runs, MODES, "policies"), "equal_budgets", "Equal budgets", budgets),
        _sourced(sources(runs, RECALL, "leaderboard"), "equal_budgets", "Recall", recall),
        _windows(runs),
        advice.sentence(runs),
    ]


def _joined(
    runs: Sequence[PublishedRun],
    finding: str,
    title: str,
    clause: Callable[[PublishedRun], str],
) -> str:
    found = [run for run in runs if run.finding.name == finding]
    return per_model(title, [(run.name, clause(run)) for run in found])


def _paper_setting(runs: Sequence[PublishedRun]) -> str:
    """The dataset's replies, and the model's own where they were run."""
    own = {run.model: own_scores(run) for run in runs if run.finding.name == "paper_own"}

    def clause(run: PublishedRun) -> str:
        scores = own.get(run.model, "")
        return f"{paper(run)}; {scores}" if scores else paper(run)

    return _joined(runs, "paper_reference", "The paper's setting", clause)


def _sourced(
    found: Sequence[Source], finding: str, title: str, clause: Callable[[Source], str]
) -> str:
    """Sentences of the finding that is about it, or of another that stands in for it."""
    named = []
    for one in found:
        instead = f" (by {one.run.finding.name})" if one.run.finding.name != finding else ""
        named.append((f"{one.run.name}{instead}", clause(one)))
    return per_model(title, named)


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
        why = f"{most} of it due to positions, for with corrected ones it costs {number(corrected)}"
    return (
        f"keeping 99% by attention with stale positions costs {number(stale)} nats per token, "
        f"{why}; keeping only the first 2,000 tokens costs {number(gist)}"
    )


FORMULA = "formula"
#: The cells of own replies that the page has a sentence on.
OWN = (
    ("Nothing evicted", "baseline", "original", "none"),
    ("99% by attention, stale positions", PAPER_POLICY, STALE, PAPER_THRESHOLD),
    ("99% by attention, corrected positions", PAPER_POLICY, CORRECTED, PAPER_THRESHOLD),
    ("The first 2,000 tokens alone", PAPER_GIST, STALE, PAPER_THRESHOLD),
)


def own_scores(run: PublishedRun) -> str:
    """The formula's mean score of own replies in each cell of `OWN`, and how many differ surely
    from the baseline's; empty if one is missing."""
    scores, sure = [], 0
    for _, policy, positions, threshold in OWN:
        rows = run.tables["verdict_means"].filter(
            policy=policy, positions=positions, threshold=threshold, judge=FORMULA
        )
        if rows.height != 1 or rows["mean"][0] is None:
            return ""
        scores.append(decimal(rows["mean"][0]))
        low, high = rows["difference_low"][0], rows["difference_high"][0]
        sure += low is not None and (low > 0 or high < 0)
    nothing, stale, corrected, gist = scores
    inside = replies_inside_window(run)
    where = f" inside the trained window ({inside})" if inside else ""
    return (
        f"own replies{where} get {nothing} of 10 from the formula judge with nothing evicted, "
        f"{stale} with 99% by attention and stale positions, {corrected} with corrected ones, "
        f"and {gist} with only the first 2,000 tokens, where {sure or 'none'} of the "
        f"{len(scores) - 1} differences from nothing evicted {'are' if sure > 1 else 'is'} sure"
    )


#: Where at least this share of own replies is inside the trained window, the rest is not spoken of.
NEARLY_ALL = 0.9


def replies_inside_window(run: PublishedRun) -> str:
    """How many own replies are inside the trained window, past which their likelihood is no
    measure and the formula gives no score; empty where nearly all are inside."""
    place = {"policy": PAPER_POLICY, "positions": STALE, "threshold": PAPER_THRESHOLD}
    replies = run.tables["own_replies"].filter(**place)
    scores = run.tables["verdict_means"].filter(judge=FORMULA, **place)
    if replies.height != 1 or scores.height != 1:
        return ""
    whole, inside = replies["n"][0], scores["n"][0]
    if inside >= NEARLY_ALL * whole:
        return ""
    return f"{inside} of {whole} with 99% by attention and stale positions"


def own_replies(run: PublishedRun) -> list[str]:
    """What own replies are like in the paper's setting: how many end, repetition, the formula's
    score, and how much less likely they are than the baseline's."""
    texts = []
    for name, policy, positions, threshold in OWN:
        place = {"policy": policy, "positions": positions, "threshold": threshold}
        rows = run.tables["own_replies"].filter(**place)
        if rows.height != 1:
            continue
        row = rows.row(0, named=True)
        parts = [
            f"{percent(row['complete'])} of {row['n']} replies come to their end",
            f"{percent(row['rep_3'])} of their runs of three words are repeated",
        ]
        scores = run.tables["verdict_means"].filter(**place).drop_nulls("mean")
        parts += [
            f"judge `{one['judge']}` gives {decimal(one['mean'])} of 10"
            for one in scores.to_dicts()
        ]
        if policy != "baseline" and row["lost"] is not None:
            parts.append(f"NLL lost {number(row, 'lost')} nats per token")
        texts.append(f"{name}: {', '.join(parts)}.")
    inside = replies_inside_window(run)
    if inside:
        texts.append(
            f"Scores and NLL are of replies inside the trained window ({inside}), past which the "
            "baseline's likelihood is no measure of quality. How replies end and repeat is of all."
        )
    return texts


def budgets(source: Source) -> str:
    """How many policies lose more than the beginning alone, with stale and corrected positions."""
    parts, own = [], []
    for mode, named in ((STALE, "stale"), (CORRECTED, "corrected")):
        rows = advice.of_mode(source, mode)
        gist = next((row for row in rows if row["policy"] == BEGINNING), None)
        others = [row for row in rows if row["policy"] != BEGINNING]
        if gist is None or not others:
            return NOT_MEASURED
        own.append(number(gist))
        worse = sum(row["mean"] > gist["mean"] for row in others)
        lose = "loses" if worse == 1 else "lose"
        text = f"with {named} positions {worse} of {len(others)} other policies {lose} more"
        if rows[0]["policy"] != BEGINNING:
            text += f", and `{rows[0]['policy']}` loses least ({number(rows[0])})"
        parts.append(text)
    size = kept(source, source.thresholds[0])
    loss = own[0] if own[0] == own[1] else f"{own[0]} (stale) and {own[1]} (corrected)"
    return (
        f"with {size} of 5,600 tokens kept, the beginning alone (`{BEGINNING}`) loses {loss} nats "
        f"per token on average; {'; '.join(parts)}"
    )


def opening(source: Source) -> str:
    """The README's first numbers: what the same kept tokens lose with stale and corrected
    positions, and the beginning alone."""
    recent, gist = (
        {mode: cell(source.run, policy, mode, source.thresholds[0]) for mode in (STALE, CORRECTED)}
        for policy in (RECENT, BEGINNING)
    )
    size = kept(source, source.thresholds[0])
    alike = number(gist[STALE]) == number(gist[CORRECTED])
    either = "either" if alike else f"stale and {number(gist[CORRECTED])} with correct ones"
    return (
        f"of 5,600 cached tokens {size} are kept; with stale positions `{RECENT}` loses "
        f"{number(recent[STALE])} nats per token, with correct ones {number(recent[CORRECTED])}; "
        f"the beginning alone (`{BEGINNING}`) loses {number(gist[STALE])} with {either}"
    )


def recall(source: Source) -> str:
    """Which policy forgets least and most of planted facts, with corrected positions."""
    board = source.run.tables["leaderboard"]
    rows = board.filter(positions=CORRECTED, threshold=source.thresholds[0])
    rows = rows.drop_nulls("margin_lost").sort("margin_lost", "policy")
    if rows.is_empty():
        return NOT_MEASURED
    least, most = rows.row(0, named=True), rows.row(-1, named=True)
    return (
        f"of {least['n_questions']} questions about planted facts the baseline answers "
        f"{percent(least['recalled_baseline'])} right; with "
        f"{kept(source, source.thresholds[0])} of 5,600 tokens kept and corrected positions, "
        f"of {rows.height} policies `{least['policy']}` has the least margin lost "
        f"({_forgets(least)}) and `{most['policy']}` the most ({_forgets(most)})"
        f"{_overlap(least, most)}"
    )


def _overlap(least: Mapping[str, Any], most: Mapping[str, Any]) -> str:
    overlap = "; their intervals overlap, so none surely forgets less than another"
    return overlap if apart(least, most, "margin_lost") is False else ""


def _forgets(row: Mapping[str, Any]) -> str:
    return f"{number(row, 'margin_lost')} nats per token, {percent(row['recalled'])} right"


def _windows(runs: Sequence[PublishedRun]) -> str:
    found = of_question(list(runs), "window", "window_changes")
    return per_model("Through the window", [(run.name, window(run)) for run in found])


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


#: Claims of what is past the trained window, where `policies` has no turns.
PAST_WINDOW = ("C1c", "C4b")


def window_answers(run: PublishedRun) -> list[str]:
    """The change of the baseline, and the decisions of claims past the window."""
    text = window(run)
    said = [f"{text[:1].upper()}{text[1:]}."]
    for claim in PAST_WINDOW:
        rows = run.tables["claims"].filter(claim=claim).drop_nulls("estimate")
        if rows.height:
            said.append(f"Past the window, {claim} (see Verdicts) is {verdict(rows)}.")
    return said


def cost(run: PublishedRun) -> str:
    """Bytes and seconds of the cells against the baseline."""
    rows = run.tables["timing"]
    base = rows.filter(policy="baseline")
    evicting = rows.filter(pl.col("policy") != "baseline")
    if base.is_empty() or evicting.is_empty():
        return NOT_MEASURED
    row = base.row(0, named=True)
    shares = (evicting["cache_bytes_end"] / row["cache_bytes_end"]).to_list()
    return (
        f"at the end of a turn the caches that are evicted from have "
        f"{_range([min(shares), max(shares)], percent)} of the baseline's bytes, over "
        f"{count(row['n_dialogues'], 'dialogue')}; the first token takes "
        f"{_ms(row['ttft_s'])} ms in the baseline and {_extent(evicting['ttft_s'])} ms where "
        f"something is evicted, a further token {_ms(row['tpot_s'])} and "
        f"{_extent(evicting['tpot_s'])} ms"
    )


def _ms(value: float | None) -> str:
    return decimal(None if value is None else 1000 * value, 1)


def _extent(values: pl.Series) -> str:
    return _range([values.min(), values.max()], _ms)


def _range(ends: Sequence[Any], text: Callable[[Any], str]) -> str:
    low, high = map(text, ends)
    return low if low == high else f"{low} to {high}"
