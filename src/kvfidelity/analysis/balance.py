"""Loss against forgetting: is there a policy with little of both (open question 1 of
arXiv 2511.04686)?"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import polars as pl

from kvfidelity.analysis.columns import table_schema
from kvfidelity.analysis.decisions import SUPPORTED, decide
from kvfidelity.analysis.healings import ASKED, NONE, PAIRED
from kvfidelity.analysis.statistics import column_mean, holm
from kvfidelity.records.grid import BASELINE

SETTING = ("model", "dataset", "positions", "threshold")
#: What the others must not be worse than, and by how many nats per token they may be.
REFERENCE, MARGIN = "streaming_llm", 0.05
CANDIDATE = "hybrid"


def balance(
    turns: pl.DataFrame, questions: pl.DataFrame, options: Mapping[str, Any]
) -> pl.DataFrame:
    """One row per cell of a target, without a healing: its loss and what it forgets of the middle.

    Also whether it loses at most MARGIN more than the reference, and whether it is on the Pareto
    front of the two means.

    Args:
        turns, questions: the tables `turns` and `recall`.
        options: confidence, resamples, seed.
    """
    scored = _scored(turns)
    middle = _middle(questions)
    rows: list[dict[str, Any]] = []
    for key, part in scored.group_by(SETTING, maintain_order=True):
        where = dict(zip(SETTING, key, strict=True))
        asked = middle.filter(**where)
        # As elsewhere: the first by name where several policies are of the kind.
        names = sorted(part.filter(kind=REFERENCE)["policy"].unique())
        reference = part.filter(policy=names[0]) if names else part.clear()
        cells = [
            where | _cell(policy, own, asked, reference, options)
            for (policy,), own in part.group_by("policy", maintain_order=True)
        ]
        rows += _with_front(cells)
    return pl.DataFrame(rows, table_schema("balance"))


def balance_pairs(
    questions: pl.DataFrame, cells: pl.DataFrame, options: Mapping[str, Any]
) -> pl.DataFrame:
    """One row per cell of the candidate's kind and other cell at the same budget and positions.

    Holm's method adjusts p over the other cells of one candidate.

    Args:
        cells: what `balance` gives.
    """
    middle = _middle(questions)
    rows: list[dict[str, Any]] = []
    for key, part in cells.group_by(SETTING, maintain_order=True):
        where = dict(zip(SETTING, key, strict=True))
        asked = middle.filter(**where)
        states = dict(part.select("policy", "not_inferior").rows())
        for policy in part.filter(kind=CANDIDATE)["policy"]:
            own = asked.filter(policy=policy).select(*ASKED, value="margin_lost")
            family = []
            for against in part.filter(pl.col("policy") != policy)["policy"]:
                other = asked.filter(policy=against).select(*ASKED, other="margin_lost")
                pairs = own.join(other, on=list(ASKED), maintain_order="left")
                if pairs.is_empty():
                    continue
                found = column_mean(pairs, pl.col("value") - pl.col("other"), pl.lit(1), options)
                family.append(
                    where
                    | {"policy": policy, "against": against, "difference": found.mean}
                    | {"against_not_inferior": states[against], "p": found.p}
                    | {"low": found.low, "high": found.high}
                    | {"n_dialogues": found.n_dialogues, "n_questions": pairs.height}
                )
            adjusted = holm([row["p"] for row in family])
            rows += [row | {"p_holm": p} for row, p in zip(family, adjusted, strict=True)]
    return pl.DataFrame(rows, table_schema("balance_pairs"))


def _scored(turns: pl.DataFrame) -> pl.DataFrame:
    # Parameters are read once per text, not once per turn.
    texts = turns.select(pl.col("parameters").unique())
    healing = pl.col("parameters").str.json_path_match("$.healing").fill_null(NONE)
    healed = texts.filter(healing != NONE)["parameters"].to_list()
    scored = turns.lazy().filter(
        "after_eviction",
        "inside_window",
        pl.col("kind") != BASELINE,
        pl.col("excess_nll").is_not_null(),
        pl.col("target_tokens").is_not_null(),
        ~pl.col("parameters").is_in(healed).fill_null(False),
    )
    columns = {*SETTING, *PAIRED, "policy", "kind", "excess_nll", "target_tokens"}
    return scored.select(*sorted(columns), "reference_tokens").collect()


def _middle(questions: pl.DataFrame) -> pl.DataFrame:
    # As in recall_by_depth, wherever in the trained window they are asked.
    return questions.filter(
        "after_eviction",
        pl.col("depth") == "middle",
        pl.col("margin_lost").is_not_null(),
    )


def _cell(
    policy: object,
    own: pl.DataFrame,
    asked: pl.DataFrame,
    reference: pl.DataFrame,
    options: Mapping[str, Any],
) -> dict[str, Any]:
    weight = pl.col("reference_tokens")
    excess = column_mean(own, pl.col("excess_nll"), weight, options)
    questions = asked.filter(pl.col("policy") == policy)
    lost = column_mean(questions, pl.col("margin_lost"), pl.lit(1), options)
    pairs = own.join(reference.select(*PAIRED, other="excess_nll"), on=list(PAIRED))
    worse = column_mean(pairs, pl.col("excess_nll") - pl.col("other"), weight, options)
    kind = own["kind"][0]
    decided, _ = decide("not_above", MARGIN, asdict(worse))
    return {
        "policy": policy,
        "kind": kind,
        "budget_tokens": own["target_tokens"][0],
        "excess_nll": excess.mean,
        "excess_low": excess.low,
        "excess_high": excess.high,
        "middle_lost": lost.mean,
        "middle_low": lost.low,
        "middle_high": lost.high,
        "worse_than_reference": worse.mean,
        "worse_low": worse.strict_low,
        "worse_high": worse.strict_high,
        # It is not worse than itself, however few dialogues there are.
        "not_inferior": SUPPORTED if kind == REFERENCE else decided,
        "n_dialogues": excess.n_dialogues,
        "n_questions": questions.height,
    }


def _with_front(cells: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The cells with `on_front`; missing where one of the two means is."""
    points = {
        cell["policy"]: (cell["excess_nll"], cell["middle_lost"])
        for cell in cells
        if cell["excess_nll"] is not None and cell["middle_lost"] is not None
    }

    def beaten(policy: str) -> bool:
        loss, lost = points[policy]
        return any(
            one <= loss and other <= lost and (one, other) != (loss, lost)
            for one, other in points.values()
        )

    return [
        cell | {"on_front": not beaten(cell["policy"]) if cell["policy"] in points else None}
        for cell in cells
    ]
