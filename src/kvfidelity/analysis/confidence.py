"""How sure a model is of an answer, and whether it may be: confidence on what was evicted."""

from __future__ import annotations

import polars as pl

from kvfidelity.analysis.finite import all_finite

#: A fact is evicted if less than this share of its message's tokens is cached.
EVICTED_BELOW = 0.1
COLUMNS = ("confidence", "evicted", "overconfidence")


def confidence_column() -> pl.Expr:
    """`confidence` of the artifact's rows: the share that the likeliest candidate has of all
    candidates' likelihoods per token, max_i exp(-nll_i) / sum_i exp(-nll_i).

    With four candidates it is 0.25 for a model that tells none of them from the others. It is
    missing where one candidate's likelihood is not finite.
    """
    nll = pl.concat_list(
        pl.col("answer_nll").cast(pl.Float64).reshape((-1, 1)).arr.to_list(), "distractor_nll"
    )
    likelihoods = nll.list.eval((-pl.element()).exp())
    share = likelihoods.list.max() / likelihoods.list.sum()
    return pl.when(all_finite(nll)).then(share).alias("confidence")


def with_overconfidence(questions: pl.DataFrame) -> pl.DataFrame:
    """Add `evicted`, and `overconfidence`: confidence minus `recalled`. These columns come last.

    Its mean is 0 for a model that is right as often as it is sure, and above 0 for one that does
    not know that it does not know.
    """
    return questions.with_columns(
        evicted=pl.col("evidence_retained_share") < EVICTED_BELOW,
        overconfidence=pl.col("confidence") - pl.col("recalled"),
    ).select(pl.exclude(COLUMNS), *COLUMNS)
