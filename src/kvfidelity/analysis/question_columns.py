"""Columns of the tables that answer the open questions."""

from __future__ import annotations

from typing import Annotated

import polars as pl

from kvfidelity.records.declaration import Dtype


class Early:
    """The loss right after an eviction, in the table of turns."""

    stage = "aggregate"
    early_nll: Annotated[
        Dtype, "nats / token", "mean NLL of the first 32 tokens of the reference reply"
    ] = pl.Float64
    early_tokens: Annotated[Dtype, "tokens", "how many tokens early_nll is over"] = pl.Int32
    early_excess_nll: Annotated[
        Dtype,
        "nats / token",
        "early_nll minus the baseline's, of turns that begin with an eviction; missing in others",
    ] = pl.Float64


class Confidence:
    """How sure the model is, in the table of recall."""

    stage = "aggregate"
    confidence: Annotated[
        Dtype, "share", "the likeliest candidate's share of all candidates' likelihoods per token"
    ] = pl.Float64
    evicted: Annotated[
        Dtype, "", "less than a tenth of the message with the answer is still cached"
    ] = pl.Boolean
    overconfidence: Annotated[Dtype, "-1 to 1", "confidence minus recalled"] = pl.Float64


class Arms:
    """Which training a model has had, in the table of turns."""

    stage = "aggregate"
    base_model: Annotated[
        Dtype, "", "model that it is fine-tuned from; the model itself if it is not"
    ] = pl.String
    arm: Annotated[
        Dtype,
        "",
        "what its training showed, with _cross_entropy if that was its loss; none for a model "
        "that is not fine-tuned",
    ] = pl.String
    training_seed: Annotated[Dtype, "", "seed of its training"] = pl.Int64


class FineTuning:
    """An arm against another, on the same dialogues; `model` is the base of both."""

    stage = "aggregate"
    arm: Annotated[
        Dtype,
        "",
        "what the training showed, with _cross_entropy if that was its loss; none for the base "
        "model",
    ] = pl.String
    measure: Annotated[
        Dtype,
        "",
        "reference_nll (nats per token), margin_early, margin_middle, margin_recent (nats per "
        "token by which a right answer leads) or own_repetition (rep_3 of own replies)",
    ] = pl.String
    against: Annotated[Dtype, "", "the arm that is subtracted"] = pl.String
    against_positions: Annotated[Dtype, "", "its position mode"] = pl.String
    n_seeds: Annotated[Dtype, "trainings", "trainings that are averaged within a dialogue"] = (
        pl.Int64
    )
    value: Annotated[Dtype, "as measure", "mean of the arm, over the turns that both have"] = (
        pl.Float64
    )
    against_value: Annotated[Dtype, "as measure", "mean of the other"] = pl.Float64
    difference: Annotated[
        Dtype, "as measure", "mean of the first minus the second, paired by turn or question"
    ] = pl.Float64
    low: Annotated[Dtype, "as measure", "lower end of its interval"] = pl.Float64
    high: Annotated[Dtype, "as measure", "upper end of its interval"] = pl.Float64
    p: Annotated[Dtype, "", "two-sided, of no difference"] = pl.Float64
    n_dialogues: Annotated[Dtype, "dialogues", "dialogues that it is over"] = pl.Int64
    n_turns: Annotated[Dtype, "turns", "turns or questions that it is over"] = pl.Int64


class Healings:
    """A healing against nothing, on the same policy, threshold and positions."""

    stage = "aggregate"
    healing: Annotated[Dtype, "", "what was done about the gap"] = pl.String
    against: Annotated[Dtype, "", "policy of the same parameters without a healing"] = pl.String
    early_excess_nll: Annotated[
        Dtype, "nats / token", "mean loss of the first 32 tokens after an eviction"
    ] = pl.Float64
    early_excess_nll_without: Annotated[Dtype, "nats / token", "the same without the healing"] = (
        pl.Float64
    )
    difference: Annotated[
        Dtype, "nats / token", "mean of the first minus the second, paired by turn; below 0 heals"
    ] = pl.Float64
    low: Annotated[Dtype, "nats / token", "lower end of its interval"] = pl.Float64
    high: Annotated[Dtype, "nats / token", "upper end of its interval"] = pl.Float64
    p: Annotated[Dtype, "", "two-sided, of no difference"] = pl.Float64
    p_holm: Annotated[
        Dtype, "", "p adjusted over the healings of one policy, threshold and position mode"
    ] = pl.Float64
    n_dialogues: Annotated[Dtype, "dialogues", "dialogues that it is over"] = pl.Int64
    n_turns: Annotated[Dtype, "turns", "turns that it is over"] = pl.Int64
    excess_difference: Annotated[
        Dtype, "nats / token", "difference in excess_nll over whole replies, after an eviction"
    ] = pl.Float64
    excess_low: Annotated[Dtype, "nats / token", "lower end of its interval"] = pl.Float64
    excess_high: Annotated[Dtype, "nats / token", "upper end of its interval"] = pl.Float64
    confidence_evicted: Annotated[Dtype, "share", "mean confidence on what was evicted"] = (
        pl.Float64
    )
    recalled_evicted: Annotated[Dtype, "share", "share of it that is answered right"] = pl.Float64
    overconfidence_difference: Annotated[
        Dtype, "-1 to 1", "overconfidence on what was evicted, minus that without the healing"
    ] = pl.Float64
    overconfidence_low: Annotated[Dtype, "-1 to 1", "lower end of its interval"] = pl.Float64
    overconfidence_high: Annotated[Dtype, "-1 to 1", "upper end of its interval"] = pl.Float64
    n_evicted: Annotated[Dtype, "questions", "questions about what was evicted"] = pl.Int64


class Balance:
    """Loss and forgetting of one cell, against sinks and a recent window at the same budget."""

    stage = "aggregate"
    kind: Annotated[Dtype, "", "kind of the policy, such as attention_top"] = pl.String
    budget_tokens: Annotated[Dtype, "tokens", "what an eviction leaves cached"] = pl.Int64
    excess_nll: Annotated[Dtype, "nats / token", "mean after an eviction"] = pl.Float64
    excess_low: Annotated[Dtype, "nats / token", "lower end of its interval"] = pl.Float64
    excess_high: Annotated[Dtype, "nats / token", "upper end of its interval"] = pl.Float64
    middle_lost: Annotated[
        Dtype, "nats / token", "mean margin_lost of questions about the middle"
    ] = pl.Float64
    middle_low: Annotated[Dtype, "nats / token", "lower end of its interval"] = pl.Float64
    middle_high: Annotated[Dtype, "nats / token", "upper end of its interval"] = pl.Float64
    worse_than_reference: Annotated[
        Dtype, "nats / token", "mean excess_nll minus streaming_llm's, paired by turn"
    ] = pl.Float64
    worse_low: Annotated[
        Dtype, "nats / token", "lower end of its interval, at the level of conclusions"
    ] = pl.Float64
    worse_high: Annotated[Dtype, "nats / token", "upper end of that interval"] = pl.Float64
    not_inferior: Annotated[
        Dtype, "", "supported if worse_high is below 0.05, contradicted if worse_low is above it"
    ] = pl.String
    on_front: Annotated[
        Dtype, "", "no cell of the same budget and positions has less of both means"
    ] = pl.Boolean
    n_dialogues: Annotated[Dtype, "dialogues", "dialogues that excess_nll is over"] = pl.Int64
    n_questions: Annotated[Dtype, "questions", "questions that middle_lost is over"] = pl.Int64


class BalancePairs:
    """What the hybrid policy forgets of the middle, against one other cell at the same budget."""

    stage = "aggregate"
    against: Annotated[Dtype, "", "policy that is subtracted"] = pl.String
    against_not_inferior: Annotated[Dtype, "", "not_inferior of that policy"] = pl.String
    difference: Annotated[
        Dtype, "nats / token", "margin_lost of the middle minus the other's, paired by question"
    ] = pl.Float64
    low: Annotated[Dtype, "nats / token", "lower end of its interval"] = pl.Float64
    high: Annotated[Dtype, "nats / token", "upper end of its interval"] = pl.Float64
    p: Annotated[Dtype, "", "two-sided, of no difference"] = pl.Float64
    p_holm: Annotated[Dtype, "", "p adjusted over the policies of one budget and position mode"] = (
        pl.Float64
    )
    n_dialogues: Annotated[Dtype, "dialogues", "dialogues that it is over"] = pl.Int64
    n_questions: Annotated[Dtype, "questions", "questions that it is over"] = pl.Int64
