"""The ranking at equal bytes: which cell loses least, and what it saves."""

from __future__ import annotations

import polars as pl
import pytest

from kvfidelity.analysis.ranking import ranking
from kvfidelity.analysis.tables import build_tables, policies, with_excess
from tests.analysis.synthetic import settings, write

COSTS = {
    ("attention_top", "stale"): 2.0,
    ("sliding_window_gist", "stale"): 0.4,
    ("sliding_window_gist", "rerotated"): 0.4,
    ("streaming_llm", "stale"): 1.0,
}
OPTIONS = {"confidence": 0.95, "resamples": 200, "seed": 0}


@pytest.fixture(scope="module")
def tables(tmp_path_factory: pytest.TempPathFactory) -> dict[str, pl.DataFrame]:
    folder = tmp_path_factory.mktemp("ranking")
    chosen = settings(10)
    write(folder, chosen, COSTS)
    return build_tables(chosen, folder)


def test_cells_of_one_budget_are_ordered_by_their_loss(tables: dict[str, pl.DataFrame]) -> None:
    table = tables["ranking"]
    assert table.height == tables["policies"].height
    assert table["mean"].is_sorted()
    ranks = {row["policy"] + " " + row["positions"]: row["rank"] for row in table.to_dicts()}
    assert ranks["attention_top stale"] == table.height
    assert ranks["streaming_llm stale"] == table.height - 1
    assert min(ranks.values()) == 1


def test_bytes_are_against_the_baseline_on_the_same_turns(
    tables: dict[str, pl.DataFrame],
) -> None:
    turns = tables["turns"]
    own = turns.filter(
        "after_eviction", "inside_window", policy="gist", positions="stale"
    ).drop_nulls("excess_nll")
    same = turns.filter(kind="baseline").join(
        own.select("dialogue", "turn"), on=["dialogue", "turn"], how="semi"
    )
    row = tables["ranking"].row(
        by_predicate=(pl.col("policy") == "gist") & (pl.col("positions") == "stale"), named=True
    )
    assert row["cache_bytes"] == own["cache_bytes_after_prefill"].mean()
    assert row["baseline_bytes"] == same["cache_bytes_after_prefill"].mean()
    assert row["bytes_saved_share"] == 1 - row["cache_bytes"] / row["baseline_bytes"]
    assert 0 < row["bytes_saved_share"] < 1


def test_policies_that_set_their_own_size_have_no_rank(tables: dict[str, pl.DataFrame]) -> None:
    turns = tables["turns"].with_columns(target_tokens=pl.lit(None, pl.Int32))
    table = ranking(turns, tables["policies"].with_columns(budget_tokens=pl.lit(None, pl.Int64)))
    assert table.height == tables["policies"].height
    assert table["rank"].null_count() == table.height


def test_equal_losses_share_a_rank(tables: dict[str, pl.DataFrame]) -> None:
    means = tables["policies"].with_columns(mean=1 + pl.int_range(pl.len()) * 1e-9)
    assert ranking(tables["turns"], means)["rank"].unique().to_list() == [1]


def test_speed_is_a_median_over_turns_decoded_alone(tables: dict[str, pl.DataFrame]) -> None:
    """The first turn of a process is slower, and batches say nothing about one run."""
    number = pl.int_range(pl.len()).over("run", order_by="turn")
    turns = tables["turns"].with_columns(
        shared_prefix=pl.lit(False),
        concurrency=pl.when(number == 1).then(4).otherwise(1),
        decode_tokens_per_s=pl.when(number == 0)
        .then(0.1)
        .when(number == 1)
        .then(1e6)
        .otherwise(pl.when(pl.col("kind") == "baseline").then(20.0).otherwise(30.0)),
    )
    table = ranking(turns, policies(with_excess(turns.drop("baseline_nll", "excess_nll")), OPTIONS))
    assert table["tokens_per_s"].unique().to_list() == [30.0]
    assert table["baseline_tokens_per_s"].unique().to_list() == [20.0]
    assert (table["n_timed"] > 0).all()
