"""Claims as testable statements, and what the data say of each."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import polars as pl

from kvfidelity.analysis.baselines import know_nothing
from kvfidelity.analysis.claim_rows import (
    RECALL_QUANTITIES,
    WINDOW_CHANGES,
    columns_of_turns,
    conditions,
    observations,
    turns_of,
    why_not_tested,
)
from kvfidelity.analysis.claims_file import read_claims_file
from kvfidelity.analysis.columns import table_schema
from kvfidelity.analysis.decisions import NOT_TESTED, UNDECIDED, decide
from kvfidelity.analysis.finetuning import averaged_over_seeds
from kvfidelity.analysis.predictors import rank_correlation
from kvfidelity.analysis.ratios import column_ratio
from kvfidelity.analysis.recall import at_chance, estimate
from kvfidelity.analysis.shares import column_share
from kvfidelity.analysis.statistics import MIN_DIALOGUES, column_mean
from kvfidelity.errors import UserError
from kvfidelity.records.arms import NO_ARM
from kvfidelity.records.artifacts import read_parquet
from kvfidelity.records.grid import BASELINE, CELL_COLUMNS, NO_THRESHOLD
from kvfidelity.records.renamed import RENAMED_COLUMNS

PAIRED = ("dialogue", "seed", "turn", "probe")
UNDEFINED = "undefined: one of the two does not vary within turns, or no turn has three cells"
NOTHING_LOST = "the quantity that the margin is a share of is not surely above 0"
#: Per reference token, so a turn weighs as many as it has; all else weighs turns alike.
PER_TOKEN = ("excess_nll", "reference_nll", "kl_baseline", *WINDOW_CHANGES)
#: Losses of recall against the baseline.
LOSSES = ("recall_lost", "margin_lost")
ESTIMATED = ("low", "high", "strict_low", "strict_high", "n_dialogues", "n_turns")
#: What else a decision depends on.
SHOWN_NOWHERE = ("sign", "largest", "core")
#: Share of own replies that came to an end.
COMPLETE = "complete"
#: `turns` that lie after an eviction.
AFTER_EVICTION = ("after_eviction", "inside_window", "past_window")
SCHEMA = table_schema("claims")


@dataclass(frozen=True)
class Claim:
    """One statement; the fields are described in config/claims.yaml."""

    claim: str
    statement: str
    quantity: str
    of: Mapping[str, Any]
    direction: str
    margin: float
    min_dialogues: int
    source: str = "this project"
    setting: Mapping[str, Any] = field(default_factory=dict)
    tested_in: str | None = None
    minus: Mapping[str, Any] | None = None
    same: Sequence[str] = field(default_factory=list)
    same_kept: bool = False
    margin_of: str | None = None
    pooled: bool = False
    correlated_with: str | None = None
    turns: str = "inside_window"
    min_questions: int = 0

    @property
    def names_an_arm(self) -> bool:
        """Whether it compares trainings of one base model; other claims are about each model."""
        return "arm" in {**self.of, **(self.minus or {})}

    def rows_of(self) -> dict[str, Any]:
        """What `of` and the setting together ask of a row."""
        return {**self.setting, **self.of}

    def rows_of_minus(self) -> dict[str, Any]:
        """The same of `minus`; the baseline evicts nothing, so of a setting only replies count."""
        assert self.minus is not None
        setting = dict(self.setting)
        if self.minus.get("kind") == BASELINE:
            setting = {name: value for name, value in setting.items() if name == "replies"}
        return {**setting, **self.minus}


def read_claims(path: Path) -> list[Claim]:
    """Claims from a YAML file; see `claims_file.read_claims_file` for what it refuses."""
    return [Claim(claim=name, **entry) for name, entry in read_claims_file(path).items()]


def evaluate_claims(
    claims: Sequence[Claim], tables: Mapping[str, pl.DataFrame], options: Mapping[str, Any]
) -> pl.DataFrame:
    """One row per claim and cell that it is about; a claim without data has one row that says so.

    Args:
        tables: `turns`, `verdicts`, `window`, `recall`, `baselines`; with `dialogues`, claims may
            compare runs that kept the same tokens.
        options: confidence, resamples, seed.

    Raises:
        UserError: a quantity that no table holds.
    """
    observed = observations(tables, quantities(claims))
    silent = know_nothing(tables["baselines"])
    if "arm" not in observed.columns:  # tables from before models were fine-tuned
        observed = observed.with_columns(base_model=pl.col("model"), arm=pl.lit(NO_ARM))
    arms = averaged_over_seeds(observed)
    rows = [
        row
        for claim in claims
        for row in _evaluate(claim, arms if claim.names_an_arm else observed, options)
    ]
    for row in rows:
        if (row["model"], row["dataset"]) in silent and row["estimate"] is not None:
            row |= {"decision": UNDECIDED, "reason": "the model knows nothing, so it loses nothing"}
    return pl.DataFrame(rows, SCHEMA)


def read_tables(folder: Path, claims: Sequence[Claim]) -> dict[str, pl.DataFrame]:
    """The tables that `evaluate_claims` takes, of the large ones without the columns that no claim
    is about.

    Raises:
        UserError: one is missing or damaged.
    """
    chosen = {
        "turns": columns_of_turns(quantities(claims)),
        "verdicts": ["run", "turn", "status", "judge", "score"],
    }
    names = ("turns", "dialogues", "verdicts", "window", "recall", "baselines")
    return {
        name: read_parquet(folder / f"{name}.parquet", kind=name, columns=chosen.get(name))
        for name in names
    }


def quantities(claims: Sequence[Claim]) -> set[str]:
    """The columns that the claims are about."""
    pairs = ((claim.quantity, claim.correlated_with) for claim in claims)
    return {name for pair in pairs for name in pair if name}


def _evaluate(
    claim: Claim, observed: pl.DataFrame, options: Mapping[str, Any]
) -> Iterator[dict[str, Any]]:
    for name in (claim.quantity, claim.correlated_with):
        # Scores appear only where a judge has given some.
        if name and name not in observed.columns and not name.startswith("score."):
            raise UserError(
                f"claim {claim.claim}: no table holds a column {name!r}"
                f"{_renamed(name)}; see config/claims.yaml"
            )
    found, too_few = False, ""
    if claim.quantity in observed.columns:
        for row in _estimates(claim, observed, options):
            if row["n_turns"] < claim.min_questions:
                where = f"; {claim.tested_in} tests it" if claim.tested_in else ""
                questions = f"{row['n_turns']} of the {claim.min_questions} questions"
                too_few = f"{questions} that it takes{where}"
                continue
            found = True
            guessing = row.pop("baseline_at_chance", False)
            decision, reason = decide(claim.direction, claim.margin, row, least=claim.min_dialogues)
            for name in SHOWN_NOWHERE:
                row.pop(name, None)
            enough = row["n_dialogues"] >= max(claim.min_dialogues, MIN_DIALOGUES)
            if enough and row["estimate"] is None:
                decision, reason = UNDECIDED, NOTHING_LOST if claim.margin_of else UNDEFINED
            elif enough and guessing:
                decision, reason = UNDECIDED, "the baseline itself may be guessing"
            yield _claim_columns(claim) | row | {"decision": decision, "reason": reason}
    if not found:
        blank = dict.fromkeys(SCHEMA)
        empty = {"n_dialogues": 0, "n_turns": 0, "decision": NOT_TESTED}
        asked = [claim.rows_of(), *([claim.rows_of_minus()] if claim.minus else [])]
        reason = too_few or why_not_tested(
            observed, asked, claim.quantity, claim.turns, claim.tested_in
        )
        yield blank | _claim_columns(claim) | empty | {"reason": reason}


def _renamed(name: str) -> str:
    return f", it is now called {RENAMED_COLUMNS[name]!r}" if name in RENAMED_COLUMNS else ""


def _estimates(
    claim: Claim, observed: pl.DataFrame, options: Mapping[str, Any]
) -> Iterator[dict[str, Any]]:
    # One filter: each copies what it leaves of a table of all turns.
    known = pl.col(claim.quantity).is_not_null()
    rows = observed.filter(known, *conditions(claim.rows_of()))
    chosen = turns_of(claim.turns, claim.quantity, rows)
    if _is_of_evicted_turns(claim):
        # What `turns_of` leaves of the baseline is there to be subtracted.
        chosen = chosen.filter("after_eviction")
    if claim.correlated_with:
        for key, part in chosen.group_by("model", "dataset", maintain_order=True):
            identity = dict(zip(CELL_COLUMNS, key, strict=False))
            yield from _correlation(claim, part, identity, options)
        return
    columns = CELL_COLUMNS[:2] if claim.pooled else CELL_COLUMNS
    for key, part in chosen.sort(CELL_COLUMNS).group_by(columns, maintain_order=True):
        cell = dict.fromkeys(CELL_COLUMNS) | dict(zip(columns, key, strict=True))
        if claim.pooled:
            cell["positions"] = claim.of.get("positions")
        identity = cell | {"budget_tokens": _budget(part)}
        if claim.minus is None:
            yield from _mean(claim, part, pl.col(claim.quantity), identity, options)
            continue
        for against, pairs in _pairs(claim, part, observed, identity, cell):
            value = pl.col(claim.quantity) - pl.col("other")
            yield from _mean(claim, pairs, value, identity | against, options)


def _is_of_evicted_turns(claim: Claim) -> bool:
    return claim.turns in AFTER_EVICTION and claim.quantity not in WINDOW_CHANGES


def _pairs(
    claim: Claim,
    part: pl.DataFrame,
    observed: pl.DataFrame,
    identity: Mapping[str, Any],
    cell: Mapping[str, Any],
) -> Iterator[tuple[dict[str, Any], pl.DataFrame]]:
    """Rows of `part` with the quantity of each cell that is subtracted as `other`.

    The baseline has no threshold, so against it, or of it, cells pair whatever their threshold.

    Turns of the baseline that the cell has not after an eviction, with the quantity or without, are
    of no pair that is missing.
    """
    minus = claim.rows_of_minus()
    shared = ["model", "dataset", *claim.same]
    if BASELINE not in (minus.get("kind"), claim.of.get("kind")):
        shared.append("threshold")
    others = observed.filter(
        pl.col(claim.quantity).is_not_null(),
        *conditions(minus | {name: identity[name] for name in shared}),
    )
    others = turns_of(claim.turns, claim.quantity, others)
    if minus.get("kind") == BASELINE and _is_of_evicted_turns(claim):
        reached = observed.filter("after_eviction", *conditions({**claim.rows_of(), **cell}))
        others = others.join(reached, on=PAIRED, how="semi")
    for (policy, positions, threshold), other in others.group_by(
        "policy", "positions", "threshold", maintain_order=True
    ):
        pairs = part.join(
            other.select(
                *PAIRED,
                other=claim.quantity,
                other_budget="target_tokens",
                other_keep_sets="keep_sets",
            ),
            on=PAIRED,
        )
        unpaired = part.height + other.height - 2 * pairs.height
        if claim.same_kept:
            pairs = pairs.filter(pl.col("keep_sets") == pl.col("other_keep_sets"))
        if pairs.height:
            name = policy if threshold == NO_THRESHOLD else f"{policy}, {positions}"
            if "arm" in minus:
                name += f", arm {minus['arm']}"
            against = {"against": name, "against_budget_tokens": _budget(other)}
            yield against | {"n_unpaired": unpaired}, pairs


def _mean(
    claim: Claim,
    rows: pl.DataFrame,
    value: pl.Expr,
    identity: Mapping[str, Any],
    options: Mapping[str, Any],
) -> Iterator[dict[str, Any]]:
    weight = pl.col("reference_tokens") if claim.quantity in PER_TOKEN else pl.lit(1)
    blank = {"against": None, "against_budget_tokens": None, "n_unpaired": None}
    if claim.margin_of:
        base = {"of": pl.col(claim.quantity), "minus": pl.col("other")}
        whole = base.get(claim.margin_of, pl.col(claim.margin_of))
        found = asdict(column_ratio(rows, value, whole, weight, options))
    elif claim.quantity in RECALL_QUANTITIES:
        found = asdict(estimate(rows, claim.quantity, value, options))
    elif claim.quantity == COMPLETE:
        found = asdict(column_share(rows, value, options, paired=claim.minus is not None))
    else:
        found = asdict(column_mean(rows, value, weight, options))
    kept = {name: found[name] for name in (*ESTIMATED, *SHOWN_NOWHERE)}
    if not found["n_turns"] or (found["mean"] is None and not claim.margin_of):
        return
    if claim.quantity in LOSSES:
        # What the baseline does not know cannot be forgotten.
        chance = rows.select(pl.col("chance").mean()).item()
        right = column_share(rows, pl.col("recalled") + pl.col("recall_lost"), options)
        kept["baseline_at_chance"] = at_chance(right.low, chance)
    yield {**blank, **identity, "estimate": found["mean"], **kept}


def _correlation(
    claim: Claim, rows: pl.DataFrame, identity: Mapping[str, Any], options: Mapping[str, Any]
) -> Iterator[dict[str, Any]]:
    other = str(claim.correlated_with)
    known = rows.filter(pl.col(other).is_not_null())
    if known.is_empty():
        return
    found = rank_correlation(known, claim.quantity, other, options)
    if found["correlation"] is None:
        found["n_dialogues"] = known["dialogue"].n_unique()
    blank = dict.fromkeys(("policy", "positions", "threshold", "against", "n_unpaired"))
    blank |= dict.fromkeys(("budget_tokens", "against_budget_tokens"))
    yield blank | dict(identity) | found | {"estimate": found.pop("correlation")}


def _budget(rows: pl.DataFrame) -> int | None:
    values = rows["target_tokens"].unique()
    return None if len(values) != 1 or values[0] is None else int(values[0])


def _claim_columns(claim: Claim) -> dict[str, Any]:
    return {
        name: getattr(claim, name)
        for name in (
            "claim",
            "statement",
            "source",
            "direction",
            "margin",
            "margin_of",
            "tested_in",
        )
    }
