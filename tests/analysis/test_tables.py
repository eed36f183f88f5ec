"""Tables from artifacts: pairing, windows, what is left out."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from kvfidelity.analysis import artifact_rows
from kvfidelity.analysis.tables import build_tables, policies, with_excess
from kvfidelity.analysis.window import by_token_index, change_at_edge
from kvfidelity.errors import UserError
from kvfidelity.records import artifacts
from kvfidelity.records.artifacts import write_parquet
from kvfidelity.records.grid import GENERATED
from kvfidelity.report.tradeoffs import pareto_front
from tests.analysis.synthetic import PROMPT, REPLY, TARGET, WINDOW, settings, write

COSTS = {("attention_top", "stale"): 2.0, ("sliding_window_gist", "stale"): 0.5}
COSTS[("sliding_window_gist", "rerotated")] = 0.5

OPTIONS: dict[str, Any] = {"confidence": 0.95, "resamples": 200, "seed": 0}


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("results")
    write(folder, settings(6), COSTS, noise=0.02, edge=0.3)
    return folder


@pytest.fixture(scope="module")
def tables(results: Path) -> dict[str, pl.DataFrame]:
    return build_tables(settings(6), results)


def test_excess_is_paired_and_counts_only_after_an_eviction_inside_the_window(
    tables: dict[str, pl.DataFrame],
) -> None:
    turns = tables["turns"]
    assert turns.filter(~pl.col("after_eviction"))["excess_nll"].abs().max() == 0
    cells = tables["policies"].filter(pl.col("policy") == "attention_top")
    means = dict(zip(cells["positions"], cells["mean"], strict=True))
    assert means["stale"] == pytest.approx(2.0, abs=0.03)
    assert means["rerotated"] == pytest.approx(0.0, abs=0.03)
    counted = turns.filter("after_eviction", "inside_window", pl.col("policy") == "attention_top")
    assert counted["tokens_seen_end"].max() <= WINDOW
    one = counted.filter(pl.col("positions") == "stale")
    assert cells.filter(pl.col("positions") == "stale")["n_turns"].item() == one.height


def test_of_two_conversations_of_own_replies_the_longer_one_counts_at_the_window(
    tables: dict[str, pl.DataFrame],
) -> None:
    """On turn 3 the baseline's replies have taken it past the window, and the run's have not."""
    added = ("after_eviction", "inside_window", "prefill_overshoot_share", "excess_nll")
    turns = tables["turns"].filter(dialogue="000").drop(*added, "baseline_nll")
    longer = pl.when(kind="baseline", turn=3).then(WINDOW + 1).otherwise("tokens_seen_end")
    other = with_excess(turns.with_columns(tokens_seen_end=longer))
    whole = with_excess(turns)
    assert whole.filter(turn=3)["inside_window"].all()
    assert not other.filter(turn=3)["inside_window"].any()
    assert other.filter(pl.col("turn") != 3).equals(whole.filter(pl.col("turn") != 3))


def test_tables_do_not_depend_on_how_many_files_are_read_at_once(
    results: Path, tables: dict[str, pl.DataFrame], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(artifact_rows, "BATCH", 7)
    for name, table in build_tables(settings(6), results).items():
        assert table.equals(tables[name]), name


@pytest.mark.parametrize("kind", GENERATED)
def test_damaged_values_are_named_by_their_file(tmp_path: Path, kind: str) -> None:
    """What the footer says is right here, so that nothing is noticed before the values are read."""
    write(tmp_path, settings(2), COSTS, probes=1)
    file = sorted(tmp_path.glob(f"generate/**/{kind}.parquet"))[3]
    whole = file.read_bytes()
    footer = int.from_bytes(whole[-8:-4], "little")
    values = len(whole) - 8 - footer
    file.write_bytes(whole[:4] + bytes(values - 4) + whole[values:])
    with pytest.raises(UserError, match=rf"^{file} is damaged \("):
        build_tables(settings(2), tmp_path)


def test_turns_of_an_earlier_schema_are_refused_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Until version 5 recall questions had a file of their own: they are not left out silently."""
    write(tmp_path, settings(2), COSTS, probes=1)
    files = sorted(tmp_path.glob("generate/**/turns.parquet"))
    monkeypatch.setattr(artifacts, "SCHEMA_VERSION", 4)
    for file in files:
        write_parquet(pl.read_parquet(file).drop("recall"), file, kind="turns")
    monkeypatch.undo()
    refused = r"has schema version 4, this code writes \d+: delete it and run again$"
    with pytest.raises(UserError, match=refused):
        build_tables(settings(2), tmp_path)


def test_texts_stay_in_the_artifacts(tables: dict[str, pl.DataFrame]) -> None:
    assert not {"prompt", "reply", "reference", "reference_token_nll"} & set(
        tables["turns"].columns
    )


def test_a_dialogues_row_sums_up_its_run(tables: dict[str, pl.DataFrame]) -> None:
    row = tables["dialogues"].filter(
        pl.col("policy") == "gist", pl.col("positions") == "stale", pl.col("dialogue") == "000"
    )
    assert row["turns"].item() == 15
    assert row["tokens_seen"].item() == 15 * (PROMPT + REPLY)
    assert row["excess_nll"].item() == pytest.approx(0.5, abs=0.05)


def test_cells_have_one_budget(tables: dict[str, pl.DataFrame]) -> None:
    assert tables["policies"]["budget_tokens"].to_list() == [TARGET] * 9


def test_turns_without_a_counterpart_are_counted(tables: dict[str, pl.DataFrame]) -> None:
    """Memory runs out in turn 7 of one run of gist, and in turn 8 of the baseline of another
    dialogue; turns 6 to 9 are after an eviction and inside the window."""
    turns = tables["turns"]
    assert tables["policies"]["n_unpaired"].sum() == 0
    inside = turns.filter("inside_window")["turn"].max()
    one = pl.col("dialogue") == "000", pl.col("policy") == "gist", pl.col("positions") == "stale"
    other = pl.col("dialogue") == "001", pl.col("kind") == "baseline"
    cut = turns.drop("baseline_nll", "excess_nll", "after_eviction", "inside_window").drop(
        "prefill_overshoot_share"
    )
    for run, turn in ((pl.all_horizontal(one), 7), (pl.all_horizontal(other), 8)):
        failed = run & (pl.col("turn") == turn)
        cut = cut.filter(~(run & (pl.col("turn") > turn))).with_columns(
            finish_reason=pl.when(failed).then(pl.lit("out_of_memory")).otherwise("finish_reason"),
            reference_nll=pl.when(~failed).then("reference_nll"),
        )
    found = policies(with_excess(cut), OPTIONS).filter(policy="gist")
    counts = dict(zip(found["positions"], found["n_unpaired"], strict=True))
    of_baseline = int(inside) - 8 + 1
    assert counts == {
        "stale": of_baseline + int(inside) - 7 + 1,
        "original": of_baseline,
        "rerotated": of_baseline,
    }
    whole = tables["policies"].filter(policy="gist", positions="stale")["n_turns"].item()
    left = found.filter(positions="stale")["n_turns"].item()
    assert left == whole - counts["stale"]


def test_overshoot_by_hand(tables: dict[str, pl.DataFrame]) -> None:
    """Cached 900 before a prompt of 300, threshold 1000."""
    turns = tables["turns"].drop(
        "after_eviction", "inside_window", "prefill_overshoot_share", "excess_nll", "baseline_nll"
    )
    one = turns.head(1).with_columns(
        slots_after_prefill=pl.lit(1200, pl.Int32),
        prompt_tokens=pl.lit(300, pl.Int32),
        threshold_tokens=pl.lit(1000, pl.Int32),
    )
    assert with_excess(one)["prefill_overshoot_share"].item() == pytest.approx(0.2)
    baseline = one.with_columns(threshold_tokens=pl.lit(None, pl.Int32))
    assert with_excess(baseline)["prefill_overshoot_share"].item() is None


def test_a_missing_artifact_is_named(results: Path) -> None:
    with pytest.raises(UserError, match=r"006.turns\.parquet does not exist"):
        build_tables(settings(7), results)


def test_a_damaged_artifact_is_one_line(tmp_path: Path) -> None:
    write(tmp_path, settings(1), {}, turns=6)
    file = next((tmp_path / "generate").rglob("turns.parquet"))
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(UserError, match="damaged") as caught:
        build_tables(settings(1), tmp_path)
    assert "\n" not in str(caught.value)


def test_a_step_at_the_window_is_found_and_none_before_it(
    tables: dict[str, pl.DataFrame],
) -> None:
    change = change_at_edge(tables["window"].filter(kind="baseline"))
    assert change.height == 6
    assert change["nll_change_at_window"].mean() == pytest.approx(0.3, abs=0.06)
    assert change["nll_change_beyond_window"].mean() == pytest.approx(0.3, abs=0.06)
    assert change["nll_drift_inside"].mean() == pytest.approx(0.0, abs=0.06)


def placed(window: int | None, nll: list[float]) -> list[tuple[Any, ...]]:
    """Start, stop, NLL and tokens of a reply after a prompt of three tokens."""
    rows = pl.DataFrame(
        {
            "run": ["a"],
            "kind": ["baseline"],
            "model": ["m"],
            "dataset": ["d"],
            "dialogue": ["000"],
            "seed": [0],
            "trained_window": pl.Series([window], dtype=pl.Int32),
            "tokens_seen_start": [0],
            "prompt_tokens": [3],
            "reference_token_nll": [nll],
        }
    )
    return by_token_index(rows.lazy()).collect().select("start", "stop", "nll", "tokens").rows()


def test_tokens_are_placed_by_hand() -> None:
    """Window 64, so bins of two tokens."""
    assert placed(64, [1.0, 2.0, 4.0]) == [(2, 4, 1.0, 1), (4, 6, 3.0, 2)]
    assert placed(20, [1.0, 2.0]) == [(3, 4, 1.0, 1), (4, 5, 2.0, 1)]  # a window below 32 tokens
    assert placed(None, [1.0, 2.0]) == []


def test_tokens_whose_likelihood_is_not_finite_are_not_placed() -> None:
    assert placed(64, [math.nan, 2.0, math.inf]) == [(4, 6, 2.0, 1)]


def test_the_front_holds_what_nothing_beats() -> None:
    rows = pl.DataFrame(
        {
            "model": ["m"] * 4,
            "dataset": ["d"] * 4,
            "policy": ["a", "b", "c", "d"],
            "cache_bytes": [1.0, 2.0, 3.0, 4.0],
            "mean": [1.0, 1.5, 0.2, 0.2],
        }
    )
    assert pareto_front(rows)["on_front"].to_list() == [True, False, True, False]
