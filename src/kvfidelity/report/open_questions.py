"""The open questions of arXiv 2511.04686 that a grid has data on: three sentences each."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import polars as pl

from kvfidelity.analysis.balance import CANDIDATE, MARGIN, REFERENCE
from kvfidelity.analysis.decisions import CONTRADICTED, NOT_TESTED, SUPPORTED
from kvfidelity.cache.positions import PositionMode
from kvfidelity.records.arms import CONTROL, CROSS_ENTROPY, NO_ARM, arm_name
from kvfidelity.records.grid import BASELINE
from kvfidelity.report.formatting import count, interval, percent, signed

#: Level of p_holm below which a difference is found.
ALPHA = 0.05
CORRECTED, STALE = PositionMode.REROTATED.value, PositionMode.STALE.value
POLICY = "A policy that balances gist, recency and the salient middle"
FINE_TUNING = "Fine-tuning: can a model learn to tolerate disrupted positions?"
HEALING = "Healing: telling the model about the gap, or closing it"
#: Healings that say nothing of a gap; others are compared with them.
CONTROLS = ("neutral_text", "neutral_in_message")
STATES = {SUPPORTED: "not worse by", CONTRADICTED: "worse by more than"}


def open_questions(tables: Mapping[str, pl.DataFrame]) -> list[dict[str, Any]]:
    """Each question with its `answers`; without one it says so.

    Args:
        tables: `balance`, `balance_pairs`, `finetuning` and `healings`.

    Returns:
        For each question `number`, `question`, `not_tested` (empty if it is) and `answers`: for
        each setting its `setting` and `sentences`.
    """
    found = {
        (1, POLICY): list(_policy_answers(tables["balance"], tables["balance_pairs"])),
        (2, FINE_TUNING): list(_finetuning_answers(tables["finetuning"])),
        (4, HEALING): list(_healing_answers(tables["healings"])),
    }
    return [
        {
            "number": number,
            "question": question,
            "answers": answers,
            "not_tested": "" if answers else NOT_TESTED,
        }
        for (number, question), answers in found.items()
    ]


def _policy_answers(balance: pl.DataFrame, pairs: pl.DataFrame) -> Iterator[dict[str, Any]]:
    corrected = balance.filter(positions=CORRECTED)
    keys = ("model", "dataset", "threshold")
    for key, part in corrected.group_by(keys, maintain_order=True):
        # Others of the kind have a part taken away.
        names = sorted(part.filter(kind=CANDIDATE)["policy"])
        if not names or part.filter(kind=REFERENCE).is_empty():
            continue
        name = CANDIDATE if CANDIDATE in names else names[0]
        own = part.row(by_predicate=pl.col("policy") == name, named=True)
        where = dict(zip(keys, key, strict=True))
        compared = pairs.filter(positions=CORRECTED, policy=name, **where)
        yield {
            "setting": f"{key[0]}, {key[1]}, {own['budget_tokens']} cached tokens",
            "sentences": [
                _quality(name, own),
                _middle(own, compared.filter(~pl.col("against").is_in(names))),
                _front(part, names),
            ],
        }


def _quality(name: str, own: Mapping[str, Any]) -> str:
    worse = {"low": own["worse_low"], "high": own["worse_high"], "n_dialogues": own["n_dialogues"]}
    state = STATES.get(own["not_inferior"], "not shown to be within")
    return (
        f"{name} loses {_estimate(own, 'excess_nll', 'excess')} nats per token, "
        f"{signed(own['worse_than_reference'], 2)} {interval(worse, 2)} against {REFERENCE}: "
        f"{state} {MARGIN}, over {count(own['n_dialogues'], 'dialogue')}."
    )


def _middle(own: Mapping[str, Any], pairs: pl.DataFrame) -> str:
    if own["middle_lost"] is None:
        return "What it forgets of the middle is not tested here."
    fair = pairs.filter(pl.col("against_not_inferior") == SUPPORTED)
    found = fair.filter(pl.col("p_holm") < ALPHA)
    less, more = (found.filter(sign)["against"].sort().to_list() for sign in _signs())
    start = (
        f"Of the middle's margin it loses {_estimate(own, 'middle_lost', 'middle')} nats per token "
        f"over {count(own['n_questions'], 'question')}"
    )
    if fair.is_empty():
        return f"{start}; no other policy is known to be within {MARGIN} of {REFERENCE}'s loss."
    if fair["p_holm"].is_null().all():
        return f"{start}; so few dialogues cannot tell it from other policies."
    others = count(fair.height, "cell")
    verdicts = [
        f"surely forgets {word} than {', '.join(names)}"
        for word, names in (("less", less), ("more", more))
        if names
    ]
    said = " and ".join(verdicts) or "surely differs from none of them"
    where = f"{others} of other policies within {MARGIN} of {REFERENCE}'s loss"
    return f"{start}; next to {where} it {said}."


def _front(part: pl.DataFrame, names: Sequence[str]) -> str:
    front = part.filter("on_front").sort("excess_nll", "policy")["policy"].to_list()
    if not front:
        return "Which others have less of both loss and forgetting is not tested here."
    ablated = ", ".join(
        f"{row['policy']} {signed(row['excess_nll'], 2)} and {signed(row['middle_lost'], 2)}"
        for row in part.filter(pl.col("policy").is_in(names)).sort("policy").to_dicts()
    )
    return (
        f"No other has less of both loss and forgetting than {_list(front)}; loss and the middle's "
        f"margin lost of each variant: {ablated}."
    )


def _finetuning_answers(table: pl.DataFrame) -> Iterator[dict[str, Any]]:
    losses = table.filter(measure="reference_nll")
    keys = ("model", "dataset", "policy", "threshold")
    evicted = losses.filter(pl.col("policy") != BASELINE)
    for key, part in evicted.group_by(keys, maintain_order=True):
        where = {"model": key[0], "dataset": key[1]}
        taxes = losses.filter(pl.col("policy") == BASELINE, **where)
        yield {
            "setting": ", ".join(key),
            "sentences": [_learns(part), _beats_rerotation(part, taxes), _helps_rerotated(part)],
        }


def _learns(part: pl.DataFrame) -> str:
    """Under KL the control's target is the model itself; so one of another loss is told too."""
    found = _finetuned(part, STALE, (CONTROL, STALE), "the same training with nothing evicted")
    own, control = (arm_name(arm, CROSS_ENTROPY) for arm in (STALE, CONTROL))
    rows = part.filter(arm=own, positions=STALE, against=control, against_positions=STALE)
    if rows.is_empty() or rows["difference"][0] is None:
        return found
    row = rows.row(0, named=True)
    return (
        f"{found.removesuffix('.')}; with the dataset's replies as target (cross-entropy) it gives "
        f"{row['value']:.2f}, {_estimate(row, 'difference', '')} against its control, over "
        f"{count(row['n_seeds'], 'training')}."
    )


def _beats_rerotation(part: pl.DataFrame, taxes: pl.DataFrame) -> str:
    found = _finetuned(part, STALE, (NO_ARM, CORRECTED), "rerotated positions and no training")
    tax = taxes.filter(arm=STALE, against=NO_ARM).to_dicts()
    if not tax:
        return found
    return (
        f"{found.removesuffix('.')}; with nothing evicted that training changes the NLL by "
        f"{_estimate(tax[0], 'difference', '')}."
    )


def _helps_rerotated(part: pl.DataFrame) -> str:
    return _finetuned(part, CORRECTED, (NO_ARM, CORRECTED), "no training")


def _finetuned(part: pl.DataFrame, mode: str, other: tuple[str, str], about: str) -> str:
    """A sentence on the arm of a position mode under that mode, against an arm under another.

    Args:
        other: arm and position mode, which `about` puts into words.
    """
    rows = part.filter(
        arm=mode, positions=mode, against=other[0], against_positions=other[1]
    ).to_dicts()
    start = f"Under {mode} positions, training on evicted states with such positions"
    if not rows or rows[0]["difference"] is None:
        return f"{start} against {about} is not tested here."
    row = rows[0]
    return (
        f"{start} gives an NLL of {row['value']:.2f} nats per token, "
        f"{_estimate(row, 'difference', '')} against {about}, over "
        f"{count(row['n_dialogues'], 'dialogue')} and {count(row['n_seeds'], 'training')}."
    )


def _healing_answers(healings: pl.DataFrame) -> Iterator[dict[str, Any]]:
    keys = ("model", "dataset", "threshold")
    for key, part in healings.group_by(keys, maintain_order=True):
        yield {
            "setting": ", ".join(key),
            "sentences": [_rescues(part), _ceiling(part), _knows(part)],
        }


def _rescues(part: pl.DataFrame) -> str:
    tried = part.filter(~pl.col("healing").is_in(["refresh", *CONTROLS]))
    if tried.is_empty():
        return "Other healings than reading again are not tested here."
    surely = tried.filter(pl.col("p_holm") < ALPHA)
    less, more = (surely.filter(sign).height for sign in _signs())
    best = tried.sort("difference", "policy", "positions", nulls_last=True).row(0, named=True)
    lowers = best["difference"] is not None and best["difference"] < 0
    name = "the one that helps most" if lowers else "none lowers its mean, and the least harmful"
    return (
        f"Over {count(tried.height, 'healing')}, each of a policy under a position mode, the loss "
        f"of the first 32 tokens after an eviction is surely lower with {less} and surely higher "
        f"with {more}; {name}, {best['policy']} under {best['positions']}, changes it by "
        f"{_estimate(best, 'difference', '')} nats per token, where nothing done costs "
        f"{signed(best['early_excess_nll_without'], 2)}."
    )


def _ceiling(part: pl.DataFrame) -> str:
    refreshed = part.filter(pl.col("healing") == "refresh").sort("against").to_dicts()
    if not refreshed:
        return "Reading the kept text again, meant as the ceiling, is not tested here."
    changes = "; ".join(
        f"{_estimate(row, 'difference', '')} on {row['against']}" for row in refreshed
    )
    return f"Reading the kept text again, meant as the ceiling, changes that loss by {changes}."


def _knows(part: pl.DataFrame) -> str:
    told = part.filter(
        pl.col("healing").is_in(["notice", "notice_in_message"]),
        pl.col("overconfidence_difference").is_not_null(),
    ).sort("overconfidence_difference")
    if told.is_empty():
        return "Whether the model knows that it does not know is not tested here."
    row = told.row(0, named=True)
    return (
        f"About what was evicted, the model is {percent(row['confidence_evicted'])} sure and "
        f"{percent(row['recalled_evicted'])} right with {row['policy']} under {row['positions']}, "
        f"the notice that helps most; it changes overconfidence by "
        f"{_estimate(row, 'overconfidence_difference', 'overconfidence')} over "
        f"{count(row['n_evicted'], 'question')}."
    )


def _signs() -> tuple[pl.Expr, pl.Expr]:
    return pl.col("difference") < 0, pl.col("difference") > 0


def _list(names: Sequence[str]) -> str:
    return ", ".join(names) if names else "none"


def _estimate(row: Mapping[str, Any], value: str, ends: str) -> str:
    """The value with the interval whose ends are `ends_low` and `ends_high`."""
    prefix = f"{ends}_" if ends else ""
    found = {"low": row[f"{prefix}low"], "high": row[f"{prefix}high"]}
    return f"{signed(row[value], 2)} {interval(found | {'n_dialogues': row['n_dialogues']}, 2)}"
