"""The columns of every table: declared here, or taken from the artifact that they come from.

`TABLES` holds them by table. Tables are built with these schemas where rows are made one by one;
a test compares the others with what is built. docs/results.md and the page's glossary show them.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Annotated

import polars as pl

from kvfidelity.analysis.question_columns import (
    Arms,
    Balance,
    BalancePairs,
    Confidence,
    Early,
    FineTuning,
    Healings,
)
from kvfidelity.records.columns import ARTIFACTS, Integrity, RecallRun
from kvfidelity.records.declaration import ColumnInfo, Dtype, columns

#: Texts and lists of the artifacts; tables leave them out, for they must fit in memory.
TURN_TEXTS = ("prompt", "message", "reply", "reference", "reference_token_nll", "recall")
RECALL_TEXTS = ("question", "answer", "distractors", "reply", "distractor_nll")
#: The log's slots; tables say which tokens.
SLOT_COLUMNS = ("slot_spans", "position_spans")


class Run:
    """Which run a row is from."""

    stage = "aggregate"
    run: Annotated[
        Dtype, "", "model/dataset/policy/positions/threshold/seed/dialogue: the artifact's folder"
    ] = pl.String


class Excess:
    """What the table of turns adds to the artifact."""

    stage = "aggregate"
    baseline_nll: Annotated[
        Dtype, "nats / token", "reference_nll of the baseline on the same turn"
    ] = pl.Float64
    after_eviction: Annotated[
        Dtype, "", "an eviction has happened in this run before or in this turn"
    ] = pl.Boolean
    inside_window: Annotated[
        Dtype, "", "run and baseline are within the trained window at the end of the turn"
    ] = pl.Boolean
    prefill_overshoot_share: Annotated[
        Dtype,
        "share",
        "how far the prompt alone took the cache past the threshold, as a share of it",
    ] = pl.Float64
    turn_overshoot_share: Annotated[
        Dtype,
        "share",
        "how far prompt and reply took the cache past the threshold, as a share of it",
    ] = pl.Float64
    excess_nll: Annotated[Dtype, "nats / token", "reference_nll minus baseline_nll: the loss"] = (
        pl.Float64
    )


class Cell:
    """Which cell a row is of."""

    stage = "aggregate"
    model: Annotated[Dtype, "", "name of the model in the configuration"] = pl.String
    dataset: Annotated[Dtype, "", "name of the dataset in the configuration"] = pl.String
    policy: Annotated[Dtype, "", "name of the policy in the configuration"] = pl.String
    positions: Annotated[Dtype, "", "position mode: stale, original or rerotated"] = pl.String
    threshold: Annotated[Dtype, "", "name of the threshold; none for the baseline"] = pl.String


class Dialogues:
    """One row per run: what its turns sum up to."""

    stage = "aggregate"
    dialogue: Annotated[Dtype, "", "number of the dialogue in the pool, three digits"] = pl.String
    seed: Annotated[Dtype, "", "seed of policy and sampling"] = pl.Int32
    replies: Annotated[Dtype, "", "which replies enter the cache: own or reference"] = pl.String
    turns: Annotated[Dtype, "turns", "turns of the run"] = pl.UInt32
    turns_after_eviction: Annotated[Dtype, "turns", "turns that excess_nll is over"] = pl.UInt32
    tokens_seen: Annotated[Dtype, "tokens", "fed by the end of the run"] = pl.Int32
    evictions: Annotated[Dtype, "", "evictions of the run"] = pl.Int32
    cache_bytes_peak: Annotated[Dtype, "bytes", "largest size of the cache"] = pl.Int64
    prefill_overshoot_share: Annotated[Dtype, "share", "largest of the run's turns"] = pl.Float64
    excess_nll: Annotated[
        Dtype, "nats / token", "token-weighted mean over turns after an eviction, inside the window"
    ] = pl.Float64
    out_of_memory: Annotated[Dtype, "turns", "turns that ran out of memory"] = pl.UInt32
    keep_sets: Annotated[Dtype, "", "equal for runs whose evictions kept the same tokens"] = (
        pl.String
    )
    prefill_s: Annotated[Dtype, "s", "sum over turns that this run computed alone"] = pl.Float64
    scoring_s: Annotated[Dtype, "s", "sum over turns that this run computed alone"] = pl.Float64
    eviction_s: Annotated[Dtype, "s", "sum over turns that this run computed alone"] = pl.Float64


class RunColumns:
    """Which cell and dialogue a row of evictions or verdicts is of."""

    stage = "aggregate"
    model: Annotated[Dtype, "", "name of the model in the configuration"] = pl.String
    dataset: Annotated[Dtype, "", "name of the dataset in the configuration"] = pl.String
    dialogue: Annotated[Dtype, "", "number of the dialogue in the pool, three digits"] = pl.String
    policy: Annotated[Dtype, "", "name of the policy in the configuration"] = pl.String
    positions: Annotated[Dtype, "", "position mode: stale, original or rerotated"] = pl.String
    threshold: Annotated[Dtype, "", "name of the threshold; none for the baseline"] = pl.String
    seed: Annotated[Dtype, "", "seed of policy and sampling"] = pl.Int32


class PolicyMean:
    """The estimate of policies."""

    stage = "aggregate"
    mean: Annotated[
        Dtype, "nats / token", "excess NLL: token-weighted mean over turns after an eviction"
    ] = pl.Float64


class Interval:
    """An estimate's interval over dialogues."""

    stage = "aggregate"
    low: Annotated[Dtype, "as the mean", "lower end of the interval; missing with one dialogue"] = (
        pl.Float64
    )
    high: Annotated[Dtype, "as the mean", "upper end of the interval"] = pl.Float64


class StrictInterval:
    """The interval that a conclusion beyond a margin needs."""

    stage = "aggregate"
    strict_low: Annotated[
        Dtype, "as the mean", "lower end at the level of conclusions: 99% where low is of 95%"
    ] = pl.Float64
    strict_high: Annotated[Dtype, "as the mean", "upper end at that level"] = pl.Float64


class Counts:
    """What an estimate is over."""

    stage = "aggregate"
    n_dialogues: Annotated[Dtype, "dialogues", "dialogues that the estimate is over"] = pl.Int64
    n_turns: Annotated[Dtype, "turns", "turns that the estimate is over"] = pl.Int64


class Unpaired:
    """What a comparison leaves out."""

    stage = "aggregate"
    n_unpaired: Annotated[
        Dtype, "turns", "turns that only one of the two compared runs has: not in the estimate"
    ] = pl.Int64


class ZeroTest:
    """The test of an estimate against 0."""

    stage = "aggregate"
    p: Annotated[
        Dtype,
        "0 to 1",
        "two-sided, of the mean being 0; missing with fewer than ten dialogues, or twenty if alike",
    ] = pl.Float64


class Policies:
    """What policies hold next to the estimate and integrity."""

    stage = "aggregate"
    kl_baseline: Annotated[Dtype, "nats / token", "token-weighted mean"] = pl.Float64
    n_tokens: Annotated[Dtype, "tokens", "reference tokens of these turns"] = pl.Int64
    budget_tokens: Annotated[
        Dtype, "tokens", "what an eviction leaves cached; missing if policies set their own size"
    ] = pl.Int64
    cache_bytes: Annotated[Dtype, "bytes", "mean size of the cache after the prompt was fed"] = (
        pl.Float64
    )


class Ranking:
    """What a cell saves, next to its loss."""

    stage = "aggregate"
    rank: Annotated[
        Dtype,
        "",
        "among the cells of one model, dataset, threshold and budget by the mean, 1 loses "
        "least; missing if policies set their own size",
    ] = pl.Int64
    budget_tokens: Annotated[
        Dtype, "tokens", "what an eviction leaves cached; missing if policies set their own size"
    ] = pl.Int64
    cached_slots: Annotated[
        Dtype, "slots", "mean slots in the cache after the prompt was fed: budget and prompt"
    ] = pl.Float64
    cache_bytes: Annotated[Dtype, "bytes", "mean size of the cache after the prompt was fed"] = (
        pl.Float64
    )
    baseline_bytes: Annotated[Dtype, "bytes", "the same of the baseline on the same turns"] = (
        pl.Float64
    )
    bytes_saved_share: Annotated[Dtype, "share", "1 - cache_bytes / baseline_bytes"] = pl.Float64
    retained_share: Annotated[Dtype, "share", "cached tokens / tokens seen, mean"] = pl.Float64
    tokens_per_s: Annotated[
        Dtype, "tokens / s", "decoded per second, median over turns that were decoded alone"
    ] = pl.Float64
    baseline_tokens_per_s: Annotated[
        Dtype, "tokens / s", "the same of the baseline, over all such turns"
    ] = pl.Float64
    n_timed: Annotated[Dtype, "turns", "turns that tokens_per_s is over"] = pl.Int64


class Leaderboard:
    """What a cell forgets at equal bytes, and what its evictions cost."""

    stage = "aggregate"
    rank: Annotated[
        Dtype,
        "",
        "among the cells of one model, dataset, threshold, budget and position mode, 1 forgets "
        "least; missing if policies set their own size",
    ] = pl.Int64
    ordered_by: Annotated[
        Dtype, "", "what rank is by: margin_lost, or mean where not every cell was asked"
    ] = pl.String
    margin_lost: Annotated[
        Dtype, "nats / token", "needles: mean, paired with the baseline by question"
    ] = pl.Float64
    margin_lost_low: Annotated[Dtype, "nats / token", "lower end of its interval"] = pl.Float64
    margin_lost_high: Annotated[Dtype, "nats / token", "upper end of its interval"] = pl.Float64
    recalled: Annotated[Dtype, "share", "needles answered right: the likeliest answer"] = pl.Float64
    recalled_baseline: Annotated[Dtype, "share", "the baseline's share of the same questions"] = (
        pl.Float64
    )
    n_questions: Annotated[Dtype, "questions", "questions that these are over"] = pl.Int64
    budget_tokens: Annotated[
        Dtype, "tokens", "what an eviction leaves cached; missing if policies set their own size"
    ] = pl.Int64
    cache_bytes: Annotated[Dtype, "bytes", "mean size of the cache after the prompt was fed"] = (
        pl.Float64
    )
    eviction_ms: Annotated[
        Dtype, "ms", "an eviction, ranking and moving: median over evictions"
    ] = pl.Float64
    scoring_ms: Annotated[Dtype, "ms", "its ranking alone: median over evictions"] = pl.Float64
    ranking_bytes: Annotated[
        Dtype, "bytes", "most that ranking held at once, where it was measured"
    ] = pl.Float64
    held_bytes: Annotated[
        Dtype, "bytes", "kept for the policy between evictions: median over evictions"
    ] = pl.Float64
    n_evictions: Annotated[Dtype, "evictions", "evictions that the costs are over"] = pl.Int64


class ContrastSides:
    """What a contrast compares."""

    stage = "aggregate"
    family: Annotated[
        Dtype,
        "",
        "what p is adjusted over: positions (stale minus rerotated), correction (rerotated minus "
        "original), or policies under one position mode (each minus attention_top)",
    ] = pl.String
    factor: Annotated[Dtype, "", "what differs: positions or policy"] = pl.String
    first: Annotated[Dtype, "", "value of the factor that is subtracted from"] = pl.String
    second: Annotated[Dtype, "", "value of the factor that is subtracted"] = pl.String


class ContrastMean:
    """The estimate of contrasts."""

    stage = "aggregate"
    mean: Annotated[
        Dtype, "nats / token", "excess NLL of first minus second on the same dialogue and turn"
    ] = pl.Float64
    same_kept: Annotated[
        Dtype, "", "the evictions of first and second kept the same tokens in every dialogue"
    ] = pl.Boolean


class Holm:
    """p over the family."""

    stage = "aggregate"
    p_holm: Annotated[
        Dtype,
        "0 to 1",
        "p, adjusted over its family, model, data set and threshold by Holm's method",
    ] = pl.Float64


class Attribution:
    """What a policy's loss is made of: tokens or positions; see `analysis.attribution`."""

    stage = "aggregate"
    model: Annotated[Dtype, "", "name of the model in the configuration"] = pl.String
    dataset: Annotated[Dtype, "", "name of the dataset in the configuration"] = pl.String
    policy: Annotated[Dtype, "", "name of the policy in the configuration"] = pl.String
    threshold: Annotated[Dtype, "", "name of the threshold"] = pl.String
    cause: Annotated[Dtype, "", "none, positions, tokens, both or undecided"] = pl.String
    reason: Annotated[Dtype, "", "reason of the cause"] = pl.String
    loses: Annotated[
        Dtype, "", "whether the loss with stale positions is surely more than 0.05: yes, no or open"
    ] = pl.String
    positions_cost: Annotated[
        Dtype,
        "",
        "the same of the difference; no as well where it is negligible in every single dialogue",
    ] = pl.String
    stale: Annotated[Dtype, "nats / token", "excess NLL with stale positions"] = pl.Float64
    stale_low: Annotated[Dtype, "nats / token", "lower end of its interval"] = pl.Float64
    stale_high: Annotated[Dtype, "nats / token", "upper end of its interval"] = pl.Float64
    rest: Annotated[Dtype, "nats / token", "the same with rerotated ones: lost with the tokens"] = (
        pl.Float64
    )
    rest_low: Annotated[Dtype, "nats / token", "lower end of its interval"] = pl.Float64
    rest_high: Annotated[Dtype, "nats / token", "upper end of its interval"] = pl.Float64
    difference: Annotated[Dtype, "nats / token", "stale minus rest: what positions cost"] = (
        pl.Float64
    )
    difference_low: Annotated[Dtype, "nats / token", "lower end of its interval"] = pl.Float64
    difference_high: Annotated[Dtype, "nats / token", "upper end of its interval"] = pl.Float64
    same_kept: Annotated[
        Dtype, "", "in every dialogue the evictions of both kept the same tokens"
    ] = pl.Boolean
    kept_spans: Annotated[Dtype, "", "contiguous stretches of kept tokens, mean"] = pl.Float64
    n_dialogues: Annotated[Dtype, "dialogues", "dialogues that the estimates are over"] = pl.Int64
    n_turns: Annotated[Dtype, "turns", "turns that the estimates are over"] = pl.Int64
    n_unpaired: Annotated[
        Dtype, "turns", "turns that only one of the two position modes has: not in the estimates"
    ] = pl.Int64


class Baselines:
    """NLL of the baseline's reference replies, against guessing among the model's tokens."""

    stage = "aggregate"
    model: Annotated[Dtype, "", "name of the model in the configuration"] = pl.String
    dataset: Annotated[Dtype, "", "name of the dataset in the configuration"] = pl.String
    mean: Annotated[Dtype, "nats / token", "token-weighted mean of reference_nll"] = pl.Float64
    vocabulary: Annotated[Dtype, "tokens", "tokens that the model chooses among, if known"] = (
        pl.Int64
    )
    guessing: Annotated[Dtype, "nats / token", "NLL of guessing: log of the vocabulary"] = (
        pl.Float64
    )
    knows_nothing: Annotated[
        Dtype, "", "the mean is at least nine tenths of guessing: nothing can be lost"
    ] = pl.Boolean


class Predictors:
    """How well an integrity metric orders the cells of a turn by their loss."""

    stage = "aggregate"
    model: Annotated[Dtype, "", "name of the model in the configuration"] = pl.String
    dataset: Annotated[Dtype, "", "name of the dataset in the configuration"] = pl.String
    metric: Annotated[Dtype, "", "column of turns that is correlated with excess_nll"] = pl.String
    correlation: Annotated[
        Dtype, "-1 to 1", "Spearman's among the cells of a dialogue and turn, mean over dialogues"
    ] = pl.Float64
    low: Annotated[
        Dtype, "-1 to 1", "lower end; missing if without one dialogue it would be undefined"
    ] = pl.Float64
    high: Annotated[Dtype, "-1 to 1", "upper end of the interval"] = pl.Float64
    n_dialogues: Annotated[Dtype, "dialogues", "dialogues that the estimate is over"] = pl.Int64
    n_turns: Annotated[Dtype, "turns", "turns that the estimate is over"] = pl.Int64


class ValidationSplit:
    """Which cells a measure is validated on."""

    stage = "aggregate"
    model: Annotated[Dtype, "", "name of the model in the configuration"] = pl.String
    dataset: Annotated[Dtype, "", "name of the dataset in the configuration"] = pl.String
    factor: Annotated[
        Dtype, "", "what is left out: policy, mode, trigger or model; none: nothing"
    ] = pl.String
    group: Annotated[
        Dtype, "", "the policy, mode, trigger or model; all shifted modes are one group"
    ] = pl.String
    cells: Annotated[
        Dtype, "", "only: the group's cells alone; without: all others; all: nothing is left out"
    ] = pl.String
    metric: Annotated[
        Dtype,
        "",
        "column of turns, or disruption_fitted: a weighted sum of three; for `only` its weights "
        "are from the other cells",
    ] = pl.String
    weight_tokens: Annotated[
        Dtype, "0 to 1", "weight of disruption_tokens in the sum; missing for other measures"
    ] = pl.Float64
    weight_positions: Annotated[Dtype, "0 to 1", "weight of disruption_positions in it"] = (
        pl.Float64
    )
    weight_future: Annotated[Dtype, "0 to 1", "weight of future_attention_share in it"] = pl.Float64


class RankCorrelation:
    """How well a measure orders the cells of a turn by their loss."""

    stage = "aggregate"
    correlation: Annotated[
        Dtype, "-1 to 1", "Spearman's among the cells of a dialogue and turn, mean over dialogues"
    ] = pl.Float64
    low: Annotated[
        Dtype, "-1 to 1", "lower end; missing if without one dialogue it would be undefined"
    ] = pl.Float64
    high: Annotated[Dtype, "-1 to 1", "upper end of the interval"] = pl.Float64


class Penalties:
    """What a penalty for disruption is worth."""

    stage = "aggregate"
    against: Annotated[Dtype, "", "the same policy with weight 0"] = pl.String
    weight: Annotated[Dtype, "", "the penalty's weight, lambda"] = pl.Float64
    mean: Annotated[
        Dtype, "nats / token", "excess NLL minus that of `against` on the same dialogue and turn"
    ] = pl.Float64


class Window:
    """NLL of reference replies by token index."""

    stage = "aggregate"
    run: Annotated[
        Dtype, "", "model/dataset/policy/positions/threshold/seed/dialogue: the artifact's folder"
    ] = pl.String
    model: Annotated[Dtype, "", "name of the model in the configuration"] = pl.String
    dataset: Annotated[Dtype, "", "name of the dataset in the configuration"] = pl.String
    kind: Annotated[Dtype, "", "kind of the policy, such as attention_top"] = pl.String
    dialogue: Annotated[Dtype, "", "number of the dialogue in the pool, three digits"] = pl.String
    seed: Annotated[Dtype, "", "seed of policy and sampling"] = pl.Int32
    trained_window: Annotated[Dtype, "tokens", "context length that the model was trained for"] = (
        pl.Int32
    )
    start: Annotated[Dtype, "token index", "first token of the stretch"] = pl.Int64
    stop: Annotated[Dtype, "token index", "first token after the stretch"] = pl.Int64
    nll: Annotated[Dtype, "nats / token", "mean NLL of the stretch's reference tokens"] = pl.Float64
    tokens: Annotated[Dtype, "tokens", "reference tokens in the stretch"] = pl.UInt32


class WindowChanges:
    """How the baseline's NLL changes along the trained window, per model and dataset."""

    stage = "aggregate"
    model: Annotated[Dtype, "", "name of the model in the configuration"] = pl.String
    dataset: Annotated[Dtype, "", "name of the dataset in the configuration"] = pl.String
    change: Annotated[
        Dtype,
        "",
        "nll_change_at_window (the quarter window past the edge), nll_change_beyond_window (1.25 "
        "to 1.5 windows), both against the last quarter before it; nll_drift_inside (that quarter "
        "against the one before)",
    ] = pl.String
    mean: Annotated[Dtype, "nats / token", "token-weighted mean over runs"] = pl.Float64
    low: Annotated[
        Dtype, "nats / token", "lower end of the interval; missing with one dialogue"
    ] = pl.Float64
    high: Annotated[Dtype, "nats / token", "upper end of the interval"] = pl.Float64
    n_dialogues: Annotated[Dtype, "dialogues", "dialogues that the estimate is over"] = pl.Int64
    n_runs: Annotated[Dtype, "runs", "baseline runs that the estimate is over"] = pl.Int64


class Environments:
    """One row per set of versions, hardware and code that made a model's runs."""

    stage = "aggregate"
    model: Annotated[Dtype, "", "name of the model in the configuration"] = pl.String
    hardware: Annotated[Dtype, "", "name of the GPU (with MPS where used) or of the processor"] = (
        pl.String
    )
    dtype: Annotated[Dtype, "", "number format of weights and cache"] = pl.String
    code: Annotated[Dtype, "", "digest of the code that a run depends on"] = pl.String
    versions: Annotated[Dtype, "", "of Python and of the packages that compute"] = pl.String
    runs: Annotated[Dtype, "runs", "runs made in this environment"] = pl.Int64
    first_made: Annotated[Dtype, "UTC", "when the first of them ended"] = pl.String
    last_made: Annotated[Dtype, "UTC", "when the last of them ended"] = pl.String


class RecallPairs:
    """What the table of recall adds to the artifact."""

    stage = "aggregate"
    trigger: Annotated[Dtype, "", "when the policy is asked: paper, turn, prompt or step"] = (
        pl.String
    )
    inside_window: Annotated[
        Dtype, "", "run and baseline are within the trained window at the end of the turn"
    ] = pl.Boolean
    chance: Annotated[Dtype, "share", "share of such questions that guessing answers"] = pl.Float64
    after_eviction: Annotated[Dtype, "", "an eviction had happened before the question"] = (
        pl.Boolean
    )
    recalled: Annotated[Dtype, "0 or 1", "the right answer is likelier than every distractor"] = (
        pl.Float64
    )
    recall_lost: Annotated[Dtype, "-1 to 1", "the baseline's recalled minus this one's"] = (
        pl.Float64
    )
    margin_lost: Annotated[Dtype, "nats / token", "the baseline's margin minus this one's"] = (
        pl.Float64
    )


class RecallGroup:
    """Which questions a row of recall_by_depth is over."""

    stage = "aggregate"
    kind: Annotated[Dtype, "", "kind of the policy, such as attention_top"] = pl.String
    origin: Annotated[Dtype, "", "needle, or dataset: the dataset's own questions"] = pl.String
    depth: Annotated[
        Dtype, "", "where in the dialogue the evidence is: early, middle, recent or unknown"
    ] = pl.String


class RecallEstimates:
    """Recall over questions after an eviction; of the baseline over all."""

    stage = "aggregate"
    recalled: Annotated[Dtype, "share", "questions answered right: the likeliest answer"] = (
        pl.Float64
    )
    recalled_low: Annotated[Dtype, "share", "lower end of its interval"] = pl.Float64
    recalled_high: Annotated[Dtype, "share", "upper end of its interval"] = pl.Float64
    answered: Annotated[Dtype, "share", "questions whose own answer holds the right one"] = (
        pl.Float64
    )
    answered_low: Annotated[Dtype, "share", "lower end of its interval"] = pl.Float64
    answered_high: Annotated[Dtype, "share", "upper end of its interval"] = pl.Float64
    recall_lost: Annotated[Dtype, "share", "mean, paired with the baseline by question"] = (
        pl.Float64
    )
    recall_lost_low: Annotated[Dtype, "share", "lower end of its interval"] = pl.Float64
    recall_lost_high: Annotated[Dtype, "share", "upper end of its interval"] = pl.Float64
    margin: Annotated[
        Dtype, "nats / token", "mean by which the right answer leads the best distractor"
    ] = pl.Float64
    margin_low: Annotated[Dtype, "nats / token", "lower end of its interval"] = pl.Float64
    margin_high: Annotated[Dtype, "nats / token", "upper end of its interval"] = pl.Float64
    margin_lost: Annotated[Dtype, "nats / token", "mean, paired with the baseline by question"] = (
        pl.Float64
    )
    margin_lost_low: Annotated[Dtype, "nats / token", "lower end of its interval"] = pl.Float64
    margin_lost_high: Annotated[Dtype, "nats / token", "upper end of its interval"] = pl.Float64
    margin_lost_strict_low: Annotated[
        Dtype, "nats / token", "lower end at the level of conclusions: 99% where the other is 95%"
    ] = pl.Float64
    margin_lost_strict_high: Annotated[Dtype, "nats / token", "upper end at that level"] = (
        pl.Float64
    )
    n_compared: Annotated[Dtype, "dialogues", "dialogues that margin_lost is over"] = pl.Int64
    recalled_baseline: Annotated[Dtype, "share", "the baseline's share of the same questions"] = (
        pl.Float64
    )
    chance: Annotated[Dtype, "share", "share of such questions that guessing answers"] = pl.Float64
    evidence_retained_share: Annotated[
        Dtype, "share", "mean share of the evidence's tokens that are still cached"
    ] = pl.Float64
    changed: Annotated[
        Dtype, "questions", "right in one of the two runs and wrong in the other"
    ] = pl.Int64
    n_questions: Annotated[Dtype, "questions", "questions that the estimates are over"] = pl.Int64
    n_dialogues: Annotated[Dtype, "dialogues", "dialogues that they are from"] = pl.Int64
    budget_tokens: Annotated[
        Dtype, "tokens", "what an eviction leaves cached; missing if policies set their own size"
    ] = pl.Int64


class NotFinite:
    """Measured values that are NaN or infinite: they are missing in all tables."""

    stage = "aggregate"
    table: Annotated[Dtype, "", "table of the measured values"] = pl.String
    column: Annotated[Dtype, "", "its column"] = pl.String
    runs: Annotated[Dtype, "runs", "runs that have such values"] = pl.Int64
    values: Annotated[Dtype, "values", "how many such values there are"] = pl.Int64


class VerdictJudge:
    """Whose verdicts a row is over."""

    stage = "aggregate"
    judge: Annotated[Dtype, "", "name of the judge in the configuration"] = pl.String


class VerdictMeans:
    """Mean verdict on own replies after an eviction, and on the baseline's of the same turns."""

    stage = "aggregate"
    mean: Annotated[Dtype, "1 to 10", "mean score"] = pl.Float64
    low: Annotated[Dtype, "1 to 10", "lower end of the interval; missing with one dialogue"] = (
        pl.Float64
    )
    high: Annotated[Dtype, "1 to 10", "upper end of the interval"] = pl.Float64
    n: Annotated[Dtype, "verdicts", "verdicts that the mean is over"] = pl.Int64
    n_dialogues: Annotated[Dtype, "dialogues", "dialogues that the mean is over"] = pl.Int64
    difference: Annotated[
        Dtype, "points", "mean score minus the baseline's, over turns that have both"
    ] = pl.Float64
    difference_low: Annotated[Dtype, "points", "lower end of its interval"] = pl.Float64
    difference_high: Annotated[Dtype, "points", "upper end of its interval"] = pl.Float64
    n_pairs: Annotated[Dtype, "replies", "pairs of verdicts that difference is over"] = pl.Int64
    n_unpaired: Annotated[Dtype, "turns", "turns on which only one of the two has a verdict"] = (
        pl.Int64
    )
    missing: Annotated[Dtype, "verdicts", "replies without a verdict"] = pl.Int64
    history_cut: Annotated[
        Dtype, "replies", "replies whose judge was not shown the whole history"
    ] = pl.Int64
    messages_cut: Annotated[Dtype, "messages", "messages that were left out for them"] = pl.Int64


class MissingVerdicts:
    """How many verdicts are missing, by judge, reason and turn."""

    stage = "aggregate"
    judge: Annotated[Dtype, "", "name of the judge in the configuration"] = pl.String
    status: Annotated[
        Dtype,
        "",
        "why: failed, refused, truncated, unparsable, not_measured, past_window, not_finite, "
        "no_history",
    ] = pl.String
    turn: Annotated[Dtype, "", "number of the turn, from 0"] = pl.Int32
    missing: Annotated[Dtype, "verdicts", "replies without a verdict"] = pl.Int64
    replies: Annotated[Dtype, "replies", "replies of that turn, with and without a verdict"] = (
        pl.Int64
    )


class MissingByCell:
    """Whether the share of missing verdicts depends on the cell."""

    stage = "aggregate"
    judge: Annotated[Dtype, "", "name of the judge in the configuration"] = pl.String
    model: Annotated[Dtype, "", "name of the model in the configuration"] = pl.String
    dataset: Annotated[Dtype, "", "name of the dataset in the configuration"] = pl.String
    fewest: Annotated[Dtype, "", "cell that misses the smallest share"] = pl.String
    fewest_share: Annotated[Dtype, "share", "verdicts that it misses"] = pl.Float64
    most: Annotated[Dtype, "", "cell that misses the largest share"] = pl.String
    most_share: Annotated[Dtype, "share", "verdicts that it misses"] = pl.Float64
    turns: Annotated[Dtype, "turns", "turns that every cell has a reply to; p is over them"] = (
        pl.Int64
    )
    p: Annotated[
        Dtype,
        "",
        "of Cochran's Q, by permutation within dialogues; missing if no dialogue tells cells apart",
    ] = pl.Float64


class OwnReplies:
    """The model's own replies after an eviction, and the baseline's of the same turns."""

    stage = "aggregate"
    mean: Annotated[
        Dtype,
        "nats / token",
        "reply_nll_baseline: token-weighted mean, inside the window; with own replies a ruined "
        "history hides ruin",
    ] = pl.Float64
    low: Annotated[
        Dtype, "nats / token", "lower end of the interval; missing with one dialogue"
    ] = pl.Float64
    high: Annotated[Dtype, "nats / token", "upper end of the interval"] = pl.Float64
    history_nll: Annotated[
        Dtype,
        "nats / token",
        "reply_nll_baseline_history: token-weighted mean, inside the window; high if a reply is "
        "lost",
    ] = pl.Float64
    history_nll_low: Annotated[Dtype, "nats / token", "lower end of its interval"] = pl.Float64
    history_nll_high: Annotated[Dtype, "nats / token", "upper end of its interval"] = pl.Float64
    lost: Annotated[
        Dtype,
        "nats / token",
        "reply_nll_baseline_history minus the baseline's of the same turn; turns count alike",
    ] = pl.Float64
    lost_low: Annotated[Dtype, "nats / token", "lower end of its interval"] = pl.Float64
    lost_high: Annotated[Dtype, "nats / token", "upper end of its interval"] = pl.Float64
    n_pairs: Annotated[Dtype, "replies", "pairs of replies that lost is over"] = pl.Int64
    n_unpaired: Annotated[
        Dtype,
        "turns",
        "turns on which only one of the two has such an NLL: empty, no memory, past the window",
    ] = pl.Int64
    n: Annotated[Dtype, "replies", "replies that the row is over, empty ones included"] = pl.Int64
    empty: Annotated[Dtype, "replies", "replies without a token: they have no NLL and no words"] = (
        pl.Int64
    )
    n_dialogues: Annotated[Dtype, "dialogues", "dialogues that they are from"] = pl.Int64
    complete: Annotated[Dtype, "share", "replies that ended on their own; an empty one did not"] = (
        pl.Float64
    )
    complete_low: Annotated[Dtype, "share", "lower end of its interval"] = pl.Float64
    complete_high: Annotated[Dtype, "share", "upper end of its interval"] = pl.Float64
    rep_3: Annotated[Dtype, "share", "mean of turns.rep_3"] = pl.Float64
    echo_share: Annotated[Dtype, "share", "mean of turns.echo_share"] = pl.Float64
    chrf: Annotated[Dtype, "0 to 100", "mean of turns.chrf"] = pl.Float64


class PrefillOvershoot:
    """How far reading the prompt alone takes the cache past its threshold."""

    stage = "aggregate"
    model: Annotated[Dtype, "", "name of the model in the configuration"] = pl.String
    policy: Annotated[Dtype, "", "name of the policy in the configuration"] = pl.String
    threshold: Annotated[Dtype, "", "name of the threshold"] = pl.String
    turns: Annotated[Dtype, "turns", "turns with a threshold"] = pl.Int64
    turns_past: Annotated[Dtype, "turns", "turns whose prompt passed the threshold"] = pl.Int64
    share_max: Annotated[Dtype, "share", "largest overshoot, as a share of the threshold"] = (
        pl.Float64
    )
    bytes_max: Annotated[Dtype, "bytes", "largest overshoot"] = pl.Float64


class Claims:
    """One row per claim and cell that it is about."""

    stage = "claims"
    claim: Annotated[Dtype, "", "name in the claims file"] = pl.String
    statement: Annotated[Dtype, "", "the statement"] = pl.String
    source: Annotated[Dtype, "", "who makes it"] = pl.String
    model: Annotated[Dtype, "", "name of the model in the configuration"] = pl.String
    dataset: Annotated[Dtype, "", "name of the dataset in the configuration"] = pl.String
    policy: Annotated[Dtype, "", "name of the policy; missing for a claim over all cells"] = (
        pl.String
    )
    positions: Annotated[Dtype, "", "position mode; missing for a claim over all of them"] = (
        pl.String
    )
    threshold: Annotated[Dtype, "", "name of the threshold"] = pl.String
    against: Annotated[Dtype, "", "the cell that is subtracted"] = pl.String
    budget_tokens: Annotated[
        Dtype, "tokens", "what an eviction leaves cached; missing if policies set their own size"
    ] = pl.Int64
    against_budget_tokens: Annotated[Dtype, "tokens", "the same of the subtracted cell"] = pl.Int64
    direction: Annotated[Dtype, "", "above, below or within"] = pl.String
    decision: Annotated[Dtype, "", "supported, contradicted, not decided or not tested here"] = (
        pl.String
    )
    margin: Annotated[Dtype, "as the estimate", "how far beyond 0 the interval has to lie"] = (
        pl.Float64
    )
    margin_of: Annotated[
        Dtype, "", "what estimate and margin are shares of: of, minus, baseline_nll; or missing"
    ] = pl.String
    tested_in: Annotated[Dtype, "", "configuration that has the claim's setting"] = pl.String
    estimate: Annotated[Dtype, "the quantity's", "estimate of the claim's quantity"] = pl.Float64
    low: Annotated[Dtype, "as the estimate", "lower end of the interval"] = pl.Float64
    high: Annotated[Dtype, "as the estimate", "upper end of the interval"] = pl.Float64
    strict_low: Annotated[
        Dtype,
        "as the estimate",
        "lower end at 99% where low is of 95%: what decides if the margin is not 0",
    ] = pl.Float64
    strict_high: Annotated[Dtype, "as the estimate", "upper end at that level"] = pl.Float64
    n_dialogues: Annotated[Dtype, "dialogues", "dialogues that the estimate is over"] = pl.Int64
    n_turns: Annotated[Dtype, "turns", "turns, or questions, that the estimate is over"] = pl.Int64
    n_unpaired: Annotated[
        Dtype,
        "turns",
        "the same that only one of the two compared cells has; missing if one cell is not compared",
    ] = pl.Int64
    reason: Annotated[Dtype, "", "reason of the decision"] = pl.String


class Reliability:
    """How far judges can be trusted: one row per measure."""

    stage = "judge_reliability"
    measure: Annotated[Dtype, "", "auc, repeats, agreement, injection, pairs or order"] = pl.String
    judge: Annotated[Dtype, "", "name of the judge in the configuration"] = pl.String
    judge_kind: Annotated[Dtype, "", "kind of the judge"] = pl.String
    judge_model: Annotated[Dtype, "", "model that the judge asks"] = pl.String
    against: Annotated[Dtype, "", "the corruption, or the other judge"] = pl.String
    replies: Annotated[Dtype, "", "corrupted: replies of the judge's test; run: this run's"] = (
        pl.String
    )
    model: Annotated[Dtype, "", "name of the model in the configuration"] = pl.String
    dataset: Annotated[Dtype, "", "name of the dataset in the configuration"] = pl.String
    value: Annotated[
        Dtype,
        "the measure's",
        "auc: probability that a good reply scores higher; repeats, agreement: quadratic-weighted "
        "kappa; injection: points gained; pairs: share in which the good reply is preferred; "
        "order: bias to the first reply, -1 to 1",
    ] = pl.Float64
    low: Annotated[Dtype, "as the value", "lower end of the interval"] = pl.Float64
    high: Annotated[Dtype, "as the value", "upper end of the interval"] = pl.Float64
    share: Annotated[
        Dtype,
        "share",
        "repeats, agreement: equal scores; injection: replies that gain; pairs: the order decided",
    ] = pl.Float64
    share_low: Annotated[Dtype, "share", "lower end of its interval"] = pl.Float64
    share_high: Annotated[Dtype, "share", "upper end of its interval"] = pl.Float64
    n: Annotated[Dtype, "replies", "replies or pairs that the value is over"] = pl.Int64
    n_good: Annotated[Dtype, "replies", "good replies that auc is over"] = pl.Int64
    n_dialogues: Annotated[Dtype, "dialogues", "dialogues that they are from"] = pl.Int64
    missing: Annotated[Dtype, "verdicts", "verdicts that are missing"] = pl.Int64


class ComparisonJudge:
    """Which judge compared."""

    stage = "judge_reliability"
    judge: Annotated[Dtype, "", "name of the judge in the configuration"] = pl.String
    judge_model: Annotated[Dtype, "", "model that the judge asks"] = pl.String


class Comparisons:
    """A cell's replies after an eviction against those of the baseline on the same turn."""

    stage = "judge_reliability"
    value: Annotated[Dtype, "-1 to 1", "share of better minus share of worse replies"] = pl.Float64
    low: Annotated[Dtype, "-1 to 1", "lower end of the interval"] = pl.Float64
    high: Annotated[Dtype, "-1 to 1", "upper end of the interval"] = pl.Float64
    n: Annotated[Dtype, "pairs", "pairs that were judged"] = pl.Int64
    n_dialogues: Annotated[Dtype, "dialogues", "dialogues that they are from"] = pl.Int64
    better: Annotated[Dtype, "pairs", "both orders prefer this cell's reply"] = pl.Int64
    worse: Annotated[Dtype, "pairs", "both orders prefer the baseline's reply"] = pl.Int64
    tie: Annotated[Dtype, "pairs", "neither, or not the same in both orders"] = pl.Int64
    order_decided: Annotated[Dtype, "pairs", "ties in which the order decided"] = pl.Int64
    missing: Annotated[Dtype, "pairs", "pairs without an outcome"] = pl.Int64
    n_unpaired: Annotated[
        Dtype, "turns", "turns on which only one of the two has a reply: memory ran out"
    ] = pl.Int64
    history_cut: Annotated[Dtype, "pairs", "pairs whose judge was not shown the whole history"] = (
        pl.Int64
    )
    messages_cut: Annotated[Dtype, "messages", "messages that were left out for them"] = pl.Int64


class Costs:
    """What judging cost; an answer that several verdicts share counts once."""

    stage = "judge_reliability"
    judge: Annotated[Dtype, "", "name of the judge in the configuration"] = pl.String
    judge_kind: Annotated[Dtype, "", "kind of the judge"] = pl.String
    judge_model: Annotated[Dtype, "", "model that the judge asks"] = pl.String
    rubric: Annotated[Dtype, "", "digest of the rubric"] = pl.String
    judged: Annotated[Dtype, "", "what was judged"] = pl.String
    verdicts: Annotated[Dtype, "verdicts", "verdicts or comparisons"] = pl.Int64
    missing: Annotated[Dtype, "verdicts", "verdicts that are missing"] = pl.Int64
    answers: Annotated[Dtype, "", "answers that came, unusable ones included"] = pl.Int64
    prompt_tokens: Annotated[Dtype, "tokens", "of requests, by the endpoint's count"] = pl.Int64
    completion_tokens: Annotated[Dtype, "tokens", "of answers, by the endpoint's count"] = pl.Int64
    reasoning_tokens: Annotated[
        Dtype, "tokens", "of reasoning, part of completion_tokens, by the endpoint's count"
    ] = pl.Int64
    usd: Annotated[Dtype, "USD", "price of the answers when they came"] = pl.Float64
    possible_usd: Annotated[
        Dtype,
        "USD",
        "the most that may have been charged on top, for tries that were lost and for answers "
        "without a count of tokens",
    ] = pl.Float64
    unpriced: Annotated[Dtype, "requests", "answered requests without a known price"] = pl.Int64


class Jobs:
    """Seconds and memory of the workflow's jobs, by rule."""

    stage = "report"
    rule: Annotated[Dtype, "", "rule of the workflow"] = pl.String
    measured: Annotated[
        Dtype, "", "job: by Snakemake, in the job's processes; worker: by the process that ran it"
    ] = pl.String
    jobs: Annotated[Dtype, "jobs", "jobs that were measured"] = pl.Int32
    jobs_shared: Annotated[
        Dtype, "jobs", "jobs of a process that may run several at once: seconds are of all"
    ] = pl.Int32
    wall_s_median: Annotated[Dtype, "s", "median of the jobs"] = pl.Float64
    wall_s_max: Annotated[Dtype, "s", "longest job"] = pl.Float64
    wall_s: Annotated[Dtype, "s", "sum over jobs"] = pl.Float64
    cpu_s: Annotated[Dtype, "s", "CPU time, sum over jobs of half a second or more"] = pl.Float64
    peak_rss_mb: Annotated[
        Dtype, "MB", "largest resident memory of a job, or of its worker since that started"
    ] = pl.Float64


def _without(infos: Iterable[ColumnInfo], names: Iterable[str]) -> list[ColumnInfo]:
    return [info for info in infos if info.name not in set(names)]


#: The columns of each table, in order.
TABLES: dict[str, list[ColumnInfo]] = {
    "turns": [
        *_without(columns(*ARTIFACTS["turns"]), TURN_TEXTS),
        *columns(Run),
        *_without(columns(*ARTIFACTS["metrics"]), ["turn"]),
        *columns(Excess, Early, Arms),
    ],
    "dialogues": columns(Run, Cell, Dialogues),
    "evictions": [
        *_without(columns(*ARTIFACTS["evictions"]), SLOT_COLUMNS),
        *columns(Run, RunColumns),
    ],
    "verdicts": [
        *_without(columns(*ARTIFACTS["verdicts"]), ["run"]),
        *columns(Run, RunColumns),
    ],
    "baselines": columns(Baselines, Interval, Counts),
    "policies": columns(
        Cell,
        PolicyMean,
        Interval,
        StrictInterval,
        Counts,
        Unpaired,
        ZeroTest,
        Policies,
        Integrity,
    ),
    "ranking": columns(Cell, PolicyMean, Interval, Counts, Ranking),
    "leaderboard": columns(Cell, PolicyMean, Interval, Counts, Leaderboard),
    "contrasts": columns(
        ContrastSides,
        Cell,
        ContrastMean,
        Interval,
        StrictInterval,
        Counts,
        Unpaired,
        ZeroTest,
        Holm,
    ),
    "attribution": columns(Attribution),
    "predictors": columns(Predictors),
    "predictor_validation": columns(ValidationSplit, RankCorrelation, Counts),
    "penalties": columns(Cell, Penalties, Interval, Counts, ZeroTest, Holm),
    "window": columns(Window),
    "window_changes": columns(WindowChanges),
    "environments": columns(Environments),
    "recall": [
        *_without(columns(RecallRun, *ARTIFACTS["recall"]), RECALL_TEXTS),
        *columns(Run, RecallPairs, Confidence),
    ],
    "recall_by_depth": columns(Cell, RecallGroup, RecallEstimates),
    "healings": columns(Cell, Healings),
    "finetuning": columns(Cell, FineTuning),
    "balance": columns(Cell, Balance),
    "balance_pairs": columns(Cell, BalancePairs),
    "verdict_means": columns(VerdictJudge, Cell, VerdictMeans),
    "missing_verdicts": columns(MissingVerdicts),
    "missing_by_cell": columns(MissingByCell),
    "missing_comparisons": [
        replace(column, stage="judge_reliability") for column in columns(MissingByCell)
    ],
    "own_replies": columns(Cell, OwnReplies),
    "prefill_overshoot": columns(PrefillOvershoot),
    "not_finite": columns(NotFinite),
    "claims": columns(Claims),
    "reliability": columns(Reliability),
    "comparisons": columns(ComparisonJudge, Cell, Comparisons),
    "costs": columns(Costs),
    "jobs": columns(Jobs),
}


def table_schema(name: str) -> dict[str, Dtype]:
    """Name and dtype of a table's columns."""
    return {info.name: info.dtype for info in TABLES[name]}
