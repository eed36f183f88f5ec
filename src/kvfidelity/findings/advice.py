"""The recommendation: which policy at which budget, and when the beginning alone is right."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import polars as pl

from kvfidelity.findings.published import PublishedRun
from kvfidelity.findings.sources import MODES, RECALL, Source, kept, sources
from kvfidelity.findings.verdicts import NOT_MEASURED
from kvfidelity.findings.wording import BEGINNING, CORRECTED, STALE, apart, number, per_model
from kvfidelity.report.formatting import percent
from kvfidelity.report.paper_tables import markdown

#: Nats per token by which a recommended policy may lose more than the best: the margin of Q1.
ALLOWED = 0.05
#: The finding of another dialogue set, and its threshold.
LOCOMO = ("locomo", "2000tok")
SIZES = (
    "the models of these findings have fewer than a billion parameters, so this is no advice for "
    "larger ones until their runs say the same"
)
RULE = (
    f"The rule: with corrected positions, of the policies whose mean loss is within {ALLOWED} nats "
    "of the least, the one that forgets least of the planted facts (least mean margin lost; if "
    "alike, the least mean loss); intervals of several may overlap, so others may be as good. With "
    "stale positions, the least mean loss."
)


def chosen(source: Source, threshold: str) -> dict[str, Any] | None:
    """The leaderboard's row of the policy that RULE names, with corrected positions."""
    board = source.run.tables["leaderboard"]
    part = board.filter(positions=CORRECTED, threshold=threshold).drop_nulls("mean")
    fit = part.filter(pl.col("mean") <= pl.col("mean").min() + ALLOWED).drop_nulls("margin_lost")
    if fit.is_empty():
        return None
    return fit.sort("margin_lost", "mean", "policy").row(0, named=True)


def of_mode(source: Source, positions: str) -> list[dict[str, Any]]:
    """The policies of a mode at the source's first threshold, the least mean loss first."""
    rows = source.run.tables["policies"]
    rows = rows.filter(positions=positions, threshold=source.thresholds[0])
    return rows.drop_nulls("mean").sort("mean", "policy").to_dicts()


def sentence(runs: Sequence[PublishedRun]) -> str:
    """The recommendation in one sentence, with its caveat."""
    stale = {one.run.model: _stale(one) for one in sources(runs, MODES, "policies")}
    named = []
    for one in sources(runs, RECALL, "leaderboard"):
        pick, least = _pick(one), stale.get(one.run.model)
        if pick:
            named.append((one.run.name, f"{pick}; {least}" if least else pick))
    lead = f"Correct the positions; then, with the caveat that {SIZES}:" if named else ""
    return per_model("What to use", named, lead)


def _pick(source: Source) -> str:
    """ "`h2o` with 2,000 and with 1,000 of 5,600 tokens kept": a policy is named once."""
    sizes: dict[str, list[str]] = {}
    for name in source.thresholds:
        row = chosen(source, name)
        if row:
            sizes.setdefault(row["policy"], []).append(f"with {kept(source, name)}")
    parts = [f"`{policy}` {' and '.join(named)}" for policy, named in sizes.items()]
    return f"{', '.join(parts)} of 5,600 tokens kept" if parts else ""


def _stale(source: Source) -> str:
    rows = of_mode(source, STALE)
    if not rows:
        return ""
    what = "the beginning alone" if rows[0]["policy"] == BEGINNING else f"`{rows[0]['policy']}`"
    size = kept(source, source.thresholds[0])
    return f"where positions stay stale, {what} loses least ({number(rows[0])} with {size} kept)"


def section(runs: Sequence[PublishedRun]) -> Iterator[str]:
    """The recommendation as a table, with the rule that it follows."""
    yield "## Recommendation\n"
    rows = [*_corrected(runs), *_modes(runs)]
    if not rows:
        yield f"{NOT_MEASURED.capitalize()}.\n"
        return
    head = ["model", "kept of 5,600", "what", "policy", "excess NLL", "margin lost"]
    yield markdown([*head, "dialogues", "finding"], rows)
    yield f"{RULE} The caveat: {SIZES}.\n"
    why = [f"- {one.run.name}: {_why(one)}." for one in sources(runs, RECALL, "leaderboard")]
    if why:
        yield "Why this policy, and not the one that loses least:\n"
        yield "\n".join(why) + "\n"
        yield "Whether the rule names it on another dialogue set too, LoCoMo:\n"
        yield "\n".join(_elsewhere(runs)) + "\n"
    yield "When the beginning alone is right:\n"
    said = [f"- {one.run.name}: {_beginning(one)}." for one in sources(runs, MODES, "policies")]
    yield "\n".join([*said, *_beginning_elsewhere(runs)])


def _beginning_elsewhere(runs: Sequence[PublishedRun]) -> Iterator[str]:
    for run in runs:
        if run.finding.name == LOCOMO[0]:
            yield f"- {run.name}, LoCoMo: {_beginning(Source(run, LOCOMO[1:]))}."


def _why(source: Source) -> str:
    """What the recommended policy loses and forgets, and what the one of least loss does."""
    threshold = source.thresholds[0]
    pick = chosen(source, threshold)
    board = source.run.tables["leaderboard"].filter(positions=CORRECTED, threshold=threshold)
    if pick is None:
        return NOT_MEASURED
    least = board.drop_nulls("mean").sort("mean", "policy").row(0, named=True)
    lead = f"with {kept(source, threshold)} tokens kept and corrected positions"
    if least["policy"] == pick["policy"]:
        return f"{lead}, `{pick['policy']}` also loses least"
    asked = percent(pick["recalled_baseline"])
    text = (
        f"{lead}, `{least['policy']}` loses least ({number(least)} nats per token, "
        f"`{pick['policy']}` {number(pick)}) but forgets {_than(least, pick)}: margin lost "
        f"{_forgotten(least)}, against {_forgotten(pick)}; the baseline answers {asked} right"
    )
    if not apart(pick, least, "margin_lost"):
        text += ". The intervals of these margins overlap, so the choice is not a sure one"
    return (
        f"{text}.{_next_best(board, pick)} Where no earlier fact is asked for again, "
        f"`{least['policy']}` is enough"
    )


def _next_best(board: pl.DataFrame, pick: dict[str, Any]) -> str:
    """The policy that forgets least but one, and whether that is sure."""
    rows = board.drop_nulls("margin_lost").filter(pl.col("policy") != pick["policy"])
    rows = rows.filter(pl.col("margin_lost") >= pick["margin_lost"])
    if rows.is_empty():
        return ""
    row = rows.sort("margin_lost", "mean", "policy").row(0, named=True)
    how = "do not overlap" if apart(pick, row, "margin_lost") else "overlap"
    return (
        f" The next by margin lost is `{row['policy']}`, {_forgotten(row)}: their intervals {how}."
    )


def _than(least: dict[str, Any], pick: dict[str, Any]) -> str:
    known = least["margin_lost"]
    return "more" if known is not None and known > pick["margin_lost"] else "no less"


def _forgotten(row: dict[str, Any]) -> str:
    return f"{number(row, 'margin_lost')} and {percent(row['recalled'])} right"


def _elsewhere(runs: Sequence[PublishedRun]) -> Iterator[str]:
    """What the rule names on the other dialogue set, for each model with a recommendation."""
    others = {run.model: Source(run, LOCOMO[1:]) for run in runs if run.finding.name == LOCOMO[0]}
    for source in sources(runs, RECALL, "leaderboard"):
        pick = chosen(source, source.thresholds[0])
        other = others.get(source.run.model)
        there = chosen(other, other.thresholds[0]) if other else None
        if pick is None or there is None or other is None:
            yield f"- {source.run.name}: {NOT_MEASURED}."
            continue
        board = other.run.tables["leaderboard"].filter(positions=CORRECTED)
        ran = pick["policy"] in board["policy"].to_list()
        if there["policy"] == pick["policy"]:
            text = f"yes, `{pick['policy']}`"
        elif ran:
            text = f"no, `{there['policy']}`, not `{pick['policy']}`"
        else:
            text = f"not tested, for `{pick['policy']}` was not run there; it names "
            text += f"`{there['policy']}`"
        yield (
            f"- {source.run.name}: {text}, of {board['policy'].n_unique()} policies with "
            f"{kept(other, other.thresholds[0])} tokens kept: excess NLL {number(there)}, margin "
            f"lost {_forgotten(there)}, over {there['n_dialogues']} dialogues."
        )


def _corrected(runs: Sequence[PublishedRun]) -> Iterator[list[str]]:
    for source in sources(runs, RECALL, "leaderboard"):
        for threshold in source.thresholds:
            row = chosen(source, threshold)
            if row is not None:
                forgets = number(row, "margin_lost")
                yield _row(source, threshold, "positions corrected: use", row, forgets)


def _modes(runs: Sequence[PublishedRun]) -> Iterator[list[str]]:
    for source in sources(runs, MODES, "policies"):
        first = source.thresholds[0]
        for mode, word in ((STALE, "stale"), (CORRECTED, "corrected")):
            for row in of_mode(source, mode)[:1]:
                yield _row(source, first, f"positions {word}: the least loss", row, "")
            for row in of_mode(source, mode)[1:]:
                if row["policy"] == BEGINNING:
                    yield _row(source, first, f"positions {word}: the beginning alone", row, "")


def _row(source: Source, threshold: str, what: str, row: dict[str, Any], forgets: str) -> list[str]:
    cells = [source.run.name, kept(source, threshold), what, row["policy"], number(row), forgets]
    return [*cells, str(row["n_dialogues"]), source.run.finding.name]


def _beginning(source: Source) -> str:
    """Whether the beginning alone loses least, with stale and with corrected positions."""
    parts = []
    for mode, word in ((STALE, "stay stale"), (CORRECTED, "are corrected")):
        rows = of_mode(source, mode)
        places = [place for place, row in enumerate(rows, 1) if row["policy"] == BEGINNING]
        if places:
            size = kept(source, source.thresholds[0])
            below = rows[: places[0] - 1]
            right = "right" if not below else "not the best"
            have = "has" if len(below) < 2 else "have"
            parts.append(
                f"where positions {word} it is {right}: of {len(rows) - 1} other policies "
                f"{len(below) or 'none'} {have} a lower mean loss with {size} tokens kept"
                f"{_apart(below, rows[places[0] - 1])}"
            )
    return "; ".join(parts) or NOT_MEASURED


def _apart(below: Sequence[dict[str, Any]], gist: dict[str, Any]) -> str:
    """How many policies' whole interval lies below the beginning's."""
    if not below:
        return ""
    sure = sum(bool(apart(row, gist)) for row in below)
    return f" ({sure or 'none'} with an interval wholly below its own)"
