"""Claims as testable statements, and what the data say of each."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import polars as pl

from kvfidelity.analysis.baselines import know_nothing
from kvfidelity.analysis.claims_file import read_claims_file
from kvfidelity.analysis.columns import table_schema
from kvfidelity.analysis.decisions import UNDECIDED, decide
from kvfidelity.analysis.predictors import rank_correlation
from kvfidelity.analysis.recall import at_chance, estimate
from kvfidelity.analysis.statistics import column_mean, column_share
from kvfidelity.analysis.window import change_at_edge
from kvfidelity.errors import UserError
from kvfidelity.records.grid import CELL_COLUMNS
from kvfidelity.records.renamed import RENAMED_COLUMNS

#: What says which turn of which run a row is, and how much it weighs.
IDENTITY = (
    *("run", *CELL_COLUMNS, "kind", "trigger", "dialogue", "seed", "turn", "target_tokens"),
    *("reference_tokens", "after_eviction", "inside_window"),
)
PAIRED = ("dialogue", "seed", "turn", "probe")
#: Quantities of recall questions; `depth` and `origin` choose among them.
RECALL_QUANTITIES = (
    "recalled",
    "recall_lost",
    "margin",
    "margin_lost",
    "answered",
    "evidence_retained_share",
)
UNDEFINED = "undefined: one of the two does not vary, or fewer than three turns have both"
#: Losses of recall against the baseline.
LOSSES = ("recall_lost", "margin_lost")
ESTIMATED = ("low", "high", "strict_low", "strict_high", "n_dialogues", "n_turns")
NO_PROBE = pl.lit(-1, pl.Int32)
#: Per reference token, so a turn weighs as many as it has; all else weighs turns alike.
WINDOW_CHANGES = ("nll_change_at_window", "nll_change_beyond_window", "nll_drift_inside")
PER_TOKEN = ("excess_nll", "reference_nll", "kl_baseline", *WINDOW_CHANGES)
SCHEMA = table_schema("claims")


@dataclass(frozen=True)
class Claim:
    """One statement; the fields are described in config/claims.yaml."""

    claim: str
    statement: str
    quantity: str
    of: Mapping[str, str]
    direction: str
    margin: float
    min_dialogues: int
    source: str = "this project"
    minus: Mapping[str, str] | None = None
    same: Sequence[str] = field(default_factory=list)
    correlated_with: str | None = None
    turns: str = "inside_window"


def read_claims(path: Path) -> list[Claim]:
    """Claims from a YAML file; see `claims_file.read_claims_file` for what it refuses."""
    return [Claim(claim=name, **entry) for name, entry in read_claims_file(path).items()]


def evaluate_claims(
    claims: Sequence[Claim], tables: Mapping[str, pl.DataFrame], options: Mapping[str, Any]
) -> pl.DataFrame:
    """One row per claim and cell that it is about; a claim without data has one row that says so.

    Args:
        tables: `turns`, `verdicts`, `window`, `recall`, `baselines`.
        options: confidence, resamples, seed.

    Raises:
        UserError: a quantity that no table holds.
    """
    named = {name for claim in claims for name in (claim.quantity, claim.correlated_with) if name}
    observed = observations(tables, named)
    silent = know_nothing(tables["baselines"])
    rows = [row for claim in claims for row in _evaluate(claim, observed, options)]
    for row in rows:
        if (row["model"], row["dataset"]) in silent and row["estimate"] is not None:
            row |= {"decision": UNDECIDED, "reason": "the model knows nothing, so it loses nothing"}
    return pl.DataFrame(rows, SCHEMA)


def observations(tables: Mapping[str, pl.DataFrame], quantities: Collection[str]) -> pl.DataFrame:
    """The quantities of claims, as far as the data have them, one row per turn of every run.

    Changes at the window stand at turn -1, those beyond it at -2, with weights of their own.
    Recall questions have their own rows, numbered by `probe`; `probe` is -1 elsewhere.
    """
    columns = (*IDENTITY, *sorted(set(quantities) & set(tables["turns"].columns)))
    turns = tables["turns"].select(columns)
    verdicts = tables["verdicts"]
    if verdicts.height and any(name.startswith("score.") for name in quantities):
        scores = verdicts.filter(pl.col("status") == "ok").with_columns(
            judge=pl.lit("score.") + pl.col("judge"), score=pl.col("score").cast(pl.Float64)
        )
        if scores.height:
            turns = turns.join(
                scores.pivot("judge", index=["run", "turn"], values="score"),
                on=["run", "turn"],
                how="left",
            )
    change = change_at_edge(tables["window"])
    runs = turns.unique("run").select(
        "run", *CELL_COLUMNS, "kind", "trigger", "dialogue", "seed", "target_tokens"
    )
    at_edge = change.select("run", "nll_change_at_window", "nll_drift_inside", "reference_tokens")
    beyond = change.select("run", "nll_change_beyond_window", reference_tokens="tokens_beyond")
    changes = [
        runs.join(part, on="run").with_columns(turn=pl.lit(turn, pl.Int32), probe=NO_PROBE)
        for turn, part in ((-1, at_edge), (-2, beyond))
    ]
    questions = tables["recall"].select(
        *[name for name in IDENTITY if name in tables["recall"].columns],
        *("probe", "origin", "depth", "chance"),
        *[pl.col(name).cast(pl.Float64) for name in RECALL_QUANTITIES],
    )
    return pl.concat(
        [turns.with_columns(probe=NO_PROBE), *changes, questions],
        how="diagonal_relaxed",
    )


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
    found = False
    if claim.quantity in observed.columns:
        rows = _turns(claim, observed.filter(pl.col(claim.quantity).is_not_null()))
        for row in _estimates(claim, rows, options):
            found = True
            guessing = row.pop("baseline_at_chance", False)
            decision, reason = decide(claim.direction, claim.margin, row, least=claim.min_dialogues)
            if row["estimate"] is None:
                reason = UNDEFINED
            elif guessing:
                decision, reason = UNDECIDED, "the baseline itself may be guessing"
            yield _claim_columns(claim) | row | {"decision": decision, "reason": reason}
    if not found:
        blank = dict.fromkeys(SCHEMA)
        empty = {"n_dialogues": 0, "n_turns": 0, "decision": "not decided"}
        yield blank | _claim_columns(claim) | empty | {"reason": "no run of this grid measures it"}


def _renamed(name: str) -> str:
    return f", it is now called {RENAMED_COLUMNS[name]!r}" if name in RENAMED_COLUMNS else ""


def _turns(claim: Claim, rows: pl.DataFrame) -> pl.DataFrame:
    if claim.quantity in WINDOW_CHANGES:
        return rows
    match claim.turns:
        case "after_eviction":
            return rows.filter("after_eviction")
        case "inside_window":
            return rows.filter("after_eviction", "inside_window")
        case "past_window":
            return rows.filter("after_eviction", ~pl.col("inside_window"))
        case "peak":
            top = rows.sort(claim.quantity, descending=True).unique("run", keep="first")
            return top.with_columns(turn=pl.lit(-1, pl.Int32))
        case _:
            return rows


def _estimates(
    claim: Claim, rows: pl.DataFrame, options: Mapping[str, Any]
) -> Iterator[dict[str, Any]]:
    chosen = _matching(rows, claim.of)
    if claim.correlated_with:
        for key, part in chosen.group_by("model", "dataset", maintain_order=True):
            identity = dict(zip(CELL_COLUMNS, key, strict=False))
            yield from _correlation(claim, part, identity, options)
        return
    for key, part in chosen.sort(CELL_COLUMNS).group_by(CELL_COLUMNS, maintain_order=True):
        identity = dict(zip(CELL_COLUMNS, key, strict=True)) | {"budget_tokens": _budget(part)}
        if claim.minus is None:
            yield from _mean(claim, part, pl.col(claim.quantity), identity, options)
            continue
        shared = ("model", "dataset", "threshold", *claim.same)
        others = _matching(rows, dict(claim.minus) | {name: identity[name] for name in shared})
        for (policy, positions), other in others.group_by("policy", "positions"):
            pairs = part.join(
                other.select(*PAIRED, other=claim.quantity, other_budget="target_tokens"),
                on=PAIRED,
            )
            if pairs.height:
                against = {
                    "against": f"{policy}, {positions}",
                    "against_budget_tokens": _budget(other),
                }
                value = pl.col(claim.quantity) - pl.col("other")
                yield from _mean(claim, pairs, value, identity | against, options)


def _mean(
    claim: Claim,
    rows: pl.DataFrame,
    value: pl.Expr,
    identity: Mapping[str, Any],
    options: Mapping[str, Any],
) -> Iterator[dict[str, Any]]:
    if claim.quantity in RECALL_QUANTITIES:
        found = asdict(estimate(rows, claim.quantity, value, options))
    else:
        weight = pl.col("reference_tokens") if claim.quantity in PER_TOKEN else pl.lit(1)
        found = asdict(column_mean(rows, value, weight, options))
    kept = {name: found[name] for name in ESTIMATED}
    if found["mean"] is None:
        return
    if claim.quantity in LOSSES:
        # What the baseline does not know cannot be forgotten.
        right = column_share(rows, pl.col("recalled") + pl.col("recall_lost"), options)
        kept["baseline_at_chance"] = at_chance(
            right.low, rows.select(pl.col("chance").mean()).item()
        )
    yield {
        "against": None,
        "against_budget_tokens": None,
        **identity,
        "estimate": found["mean"],
        **kept,
    }


def _correlation(
    claim: Claim, rows: pl.DataFrame, identity: Mapping[str, Any], options: Mapping[str, Any]
) -> Iterator[dict[str, Any]]:
    known = rows.filter(pl.col(str(claim.correlated_with)).is_not_null())
    found = rank_correlation(
        known[claim.quantity].cast(pl.Float64).to_numpy(),
        known[str(claim.correlated_with)].cast(pl.Float64).to_numpy(),
        known["dialogue"].to_numpy().astype(str),
        confidence=options["confidence"],
    )
    if known.is_empty():
        return
    blank = dict.fromkeys(("policy", "positions", "threshold", "against"))
    blank |= dict.fromkeys(("budget_tokens", "against_budget_tokens"))
    if found is None:
        found = dict.fromkeys(("correlation", *ESTIMATED)) | {"n_turns": known.height}
        found["n_dialogues"] = known["dialogue"].n_unique()
    yield blank | dict(identity) | found | {"estimate": found.pop("correlation")}


def _matching(rows: pl.DataFrame, values: Mapping[str, Any]) -> pl.DataFrame:
    return rows.filter(*[pl.col(name) == value for name, value in values.items()])


def _budget(rows: pl.DataFrame) -> int | None:
    values = rows["target_tokens"].unique()
    return None if len(values) != 1 or values[0] is None else int(values[0])


def _claim_columns(claim: Claim) -> dict[str, Any]:
    return {
        name: getattr(claim, name)
        for name in ("claim", "statement", "source", "direction", "margin")
    }
