"""All artifacts of a configuration in tidy tables."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import polars as pl

from kvfidelity.analysis import recall
from kvfidelity.analysis.artifact_rows import joined, read_dialogues, read_runs
from kvfidelity.analysis.attribution import attribution
from kvfidelity.analysis.balance import balance, balance_pairs
from kvfidelity.analysis.baselines import baselines, know_nothing
from kvfidelity.analysis.columns import (
    RECALL_TEXTS,
    SLOT_COLUMNS,
    TURN_TEXTS,
    table_schema,
)
from kvfidelity.analysis.confidence import confidence_column, with_overconfidence
from kvfidelity.analysis.contrasts import REROTATED, STALE, contrasts
from kvfidelity.analysis.early import early_columns, with_early_excess
from kvfidelity.analysis.environments import environments
from kvfidelity.analysis.finetuning import finetuning, with_arms
from kvfidelity.analysis.finite import (
    IN_LISTS,
    all_finite,
    counted,
    counted_in_lists,
    how_many_not_finite,
    missing_if_not_finite,
)
from kvfidelity.analysis.healings import healings
from kvfidelity.analysis.kept_alike import keep_sets, with_same_kept
from kvfidelity.analysis.leaderboard import leaderboard
from kvfidelity.analysis.overshoot import prefill_overshoot
from kvfidelity.analysis.own_replies import own_replies
from kvfidelity.analysis.pairs import PAIRED, unpaired_turns
from kvfidelity.analysis.penalties import penalties
from kvfidelity.analysis.predictor_validation import predictor_validation
from kvfidelity.analysis.predictors import predictors
from kvfidelity.analysis.ranking import ranking
from kvfidelity.analysis.statistics import (
    INTERVAL_OPTIONS,
    Floats,
    column_mean,
    weighted_mean,
)
from kvfidelity.analysis.verdicts import missing_by_cell, missing_verdicts, verdict_means
from kvfidelity.analysis.window import by_token_index, window_changes
from kvfidelity.records.artifacts import read_metadata
from kvfidelity.records.columns import DISRUPTION, INTEGRITY
from kvfidelity.records.grid import CELL_COLUMNS, RunKey, dialogue_of, run_keys
from kvfidelity.records.questions import RECALL_COLUMN
from kvfidelity.records.questions import questions as questions_of

#: Lists of turns that other tables are made of.
TURN_LISTS = ("reference_token_nll", RECALL_COLUMN)


def build_tables(
    settings: Mapping[str, Any],
    results: Path,
    notes_of: Callable[[Path], Mapping[str, str]] = read_metadata,
    on_rows: Callable[[str, pl.DataFrame], object] = lambda name, table: None,
) -> dict[str, pl.DataFrame]:
    """The tables `turns`, `dialogues`, `evictions`, `verdicts` and those made of them.

    turns: one row per turn of every run, without its texts, with text metrics, whether an eviction
        has happened (`after_eviction`), whether the baseline is within the trained window
        (`inside_window`) and the excess of the reference reply's NLL over that run's.
    dialogues: one row per run: what its turns sum up to.
    policies: one row per cell: excess NLL with its interval, KL, integrity, bytes, over the turns
        after an eviction and inside the window.
    ranking, leaderboard, contrasts, attribution, baselines: see their functions.
    predictors: how well integrity metrics order turns by their loss; predictor_validation: the same
        where groups of cells are left out; penalties: see its function.
    window: NLL of the baseline's replies by token index, see `analysis.window`.
    environments: one row per distinct set of versions, hardware and code that made a model's runs.
    healings, finetuning, balance, balance_pairs: see their functions.
    recall: one row per recall question, without its texts; recall_by_depth: one row per cell,
        origin and depth, see `analysis.recall`. Both are empty without recall questions.
    window_changes, verdict_means, missing_verdicts, missing_by_cell, own_replies,
        prefill_overshoot: see their functions.
    not_finite: how many measured values are NaN or infinite. They count as missing in all tables.

    Args:
        settings: what `rule_params.table_settings` chooses of the configuration.
        results: the folder with the artifacts.
        notes_of: reads an artifact's notes; a caller that has read them already gives its own.
        on_rows: is given `turns`, `evictions`, `verdicts` and `recall`, the large tables, as soon
            as they are whole: a caller can write them while the others are computed.

    Raises:
        UserError: an artifact is missing or damaged.
    """
    keys = run_keys(settings)
    generated = results / "generate"
    talks = list(dict.fromkeys(map(dialogue_of, keys)))
    logged, window, asked = _turns_window_and_questions(generated, keys)
    metrics = read_dialogues(results / "metrics", talks, "metrics.parquet")
    log = read_runs(generated, keys, "evictions.parquet", lambda rows: rows.drop(SLOT_COLUMNS))
    verdicts = [
        read_dialogues(results / "judge" / judge, talks, "verdicts.parquet").select(
            pl.exclude("run"), "run"
        )
        for judge in settings["judging"]
    ]
    measured = {
        "turns": logged.join(metrics, on=["run", "turn"], how="left"),
        "evictions": joined(log),
        "recall": asked,
        "verdicts": pl.concat(verdicts) if verdicts else pl.DataFrame(),
    }
    not_finite = pl.concat(
        [
            counted(measured),
            counted_in_lists("turns", "reference_token_nll", measured["turns"]),
            counted_in_lists("recall", "distractor_nll", measured["recall"]),
        ]
    )
    measured = {
        name: missing_if_not_finite(table.drop(IN_LISTS, strict=False))
        for name, table in measured.items()
    }
    turns = with_arms(with_early_excess(with_excess(measured["turns"])), settings["models"])
    on_rows("turns", turns)
    evictions = _with_run_columns(measured["evictions"], turns)
    on_rows("evictions", evictions)
    runs = dialogues(turns, keep_sets(measured["evictions"]))
    questions = with_overconfidence(recall.questions(measured["recall"], turns))
    on_rows("recall", questions)
    named_verdicts = _with_run_columns(measured["verdicts"], turns) if verdicts else pl.DataFrame()
    on_rows("verdicts", named_verdicts)
    options = {name: settings["report"][name] for name in INTERVAL_OPTIONS}
    scored = scored_turns(turns)
    beginnings = baselines(turns, results / "dialogues", options)
    means = policies(turns, options)
    balanced = balance(turns, questions, options)
    ranked = ranking(turns, means)
    return {
        "turns": turns,
        "dialogues": runs,
        "evictions": evictions,
        "verdicts": named_verdicts,
        "baselines": beginnings,
        "policies": means,
        "ranking": ranked,
        "leaderboard": leaderboard(ranked, questions, evictions, options),
        "contrasts": with_same_kept(
            contrasts(scored, settings["policies"], options),
            runs,
            pl.col("first"),
            pl.col("second"),
        ),
        "attribution": with_same_kept(
            attribution(scored, know_nothing(beginnings), options),
            runs,
            pl.lit(STALE),
            pl.lit(REROTATED),
        ),
        "predictors": predictors(turns, (*INTEGRITY, *DISRUPTION), options),
        "predictor_validation": predictor_validation(turns, options),
        "penalties": penalties(turns, options),
        "window": window,
        "window_changes": window_changes(window, options),
        "environments": environments(
            [results / "generate" / key / "turns.parquet" for key in keys],
            [RunKey.from_path(key).model for key in keys],
            notes_of,
        ),
        "recall": questions,
        "recall_by_depth": recall.by_depth(questions, options),
        "healings": healings(turns, questions, options),
        "finetuning": finetuning(turns, questions, options),
        "balance": balanced,
        "balance_pairs": balance_pairs(questions, balanced, options),
        "verdict_means": verdict_means(named_verdicts, turns, options),
        "missing_verdicts": missing_verdicts(named_verdicts),
        "missing_by_cell": missing_by_cell(named_verdicts, options),
        "own_replies": own_replies(turns, options),
        "prefill_overshoot": prefill_overshoot(turns),
        "not_finite": not_finite,
    }


def with_excess(turns: pl.DataFrame) -> pl.DataFrame:
    """Add `after_eviction`, `inside_window`, the two overshoot shares and `excess_nll`.

    excess_nll: nats per token more than the baseline.
    inside_window: with own replies the two conversations differ in length: the longer one counts.
    prefill_overshoot_share: how far the prompt alone took the cache past the threshold, as a share
        of it: cached 900 before a prompt of 300, threshold 1000, gives 0.2.
    turn_overshoot_share: the same for prompt and reply.
    """
    baseline = turns.filter(pl.col("kind") == "baseline").select(
        *PAIRED, baseline_nll=pl.col("reference_nll"), baseline_end=pl.col("tokens_seen_end")
    )
    joined = turns.join(baseline, on=list(PAIRED), how="left")
    end = pl.max_horizontal("tokens_seen_end", "baseline_end")
    evicted = pl.col("evictions").fill_null(0).cum_sum().over("run", order_by="turn") > 0
    return joined.with_columns(
        after_eviction=evicted,
        inside_window=end <= pl.col("trained_window"),
        prefill_overshoot_share=_overshoot(pl.col("slots_after_prefill")),
        turn_overshoot_share=_overshoot(pl.max_horizontal("slots_after_prefill", "slots_end")),
        excess_nll=pl.col("reference_nll") - pl.col("baseline_nll"),
    ).drop("baseline_end")


def _sum_if_known(seconds: pl.Expr) -> pl.Expr:
    """The sum; missing if a turn's seconds are."""
    return pl.when(seconds.null_count() == 0).then(seconds.sum())


def dialogues(turns: pl.DataFrame, kept: pl.DataFrame) -> pl.DataFrame:
    """One row per run: sizes, evictions, seconds, quality after the first eviction.

    Args:
        kept: what `kept_alike.keep_sets` gives.
    """
    scored = pl.col("after_eviction") & pl.col("inside_window") & pl.col("excess_nll").is_not_null()
    weight = pl.col("reference_tokens").filter(scored)
    seconds = ("prefill_s", "scoring_s", "eviction_s")
    runs = turns.group_by(
        "run", *CELL_COLUMNS, "dialogue", "seed", "replies", maintain_order=True
    ).agg(
        turns=pl.len(),
        turns_after_eviction=scored.sum(),
        tokens_seen=pl.col("tokens_seen_end").max(),
        evictions=pl.col("evictions").sum(),
        cache_bytes_peak=pl.col("cache_bytes_peak").max(),
        prefill_overshoot_share=pl.col("prefill_overshoot_share").max(),
        excess_nll=pl.when(weight.sum() > 0).then(
            (pl.col("excess_nll").filter(scored) * weight).sum() / weight.sum()
        ),
        out_of_memory=(pl.col("finish_reason") == "out_of_memory").sum(),
        **{name: _sum_if_known(pl.col(name).filter(~pl.col("shared_prefix"))) for name in seconds},
    )
    # Where columns stand is declared; `keep_sets` stands before the seconds.
    joined = runs.join(kept, on="run", how="left", maintain_order="left")
    return joined.select(*[name for name in joined.columns if name not in seconds], *seconds)


def policies(turns: pl.DataFrame, options: Mapping[str, Any]) -> pl.DataFrame:
    """One row per cell that evicted, over its turns after an eviction.

    n_unpaired: turns that could not be compared because memory ran out, or a value is not finite,
    in this cell or in the baseline.
    """
    rows = []
    measured = pl.col("inside_window") & pl.col("reference_nll").is_not_null()
    unpaired = unpaired_turns(turns, measured)
    for key, part in scored_turns(turns).group_by(CELL_COLUMNS, maintain_order=True):
        estimate = column_mean(part, pl.col("excess_nll"), pl.col("reference_tokens"), options)
        tokens = part["reference_tokens"]
        rows.append(
            dict(zip(CELL_COLUMNS, map(str, key), strict=True))
            | asdict(estimate)
            | {"n_unpaired": unpaired.get(key, 0)}
            | {"kl_baseline": weighted_mean(_floats(part["kl_baseline"]), _floats(tokens))}
            | {"n_tokens": int(tokens.sum()), "budget_tokens": _single_value(part["target_tokens"])}
            | {"cache_bytes": part["cache_bytes_after_prefill"].mean()}
            | {name: part[name].mean() for name in INTEGRITY}
        )
    return pl.DataFrame(rows, table_schema("policies")).sort(CELL_COLUMNS)


def scored_turns(turns: pl.DataFrame) -> pl.DataFrame:
    """Turns that excess NLL is over: past its window the baseline is no measure of quality."""
    measured = turns.lazy().filter(
        "after_eviction", "inside_window", pl.col("excess_nll").is_not_null()
    )
    return measured.select(
        *(*CELL_COLUMNS, "dialogue", "seed", "turn", "target_tokens", "reference_tokens"),
        *("excess_nll", "kl_baseline", "cache_bytes_after_prefill", *INTEGRITY),
    ).collect()


def _turns_window_and_questions(
    generated: Path, keys: Sequence[str]
) -> tuple[pl.DataFrame, pl.DataFrame, pl.DataFrame]:
    """All turns without texts, what `by_token_index` makes of the NLL of each token, and the recall
    questions without texts."""
    turns, windows, asked = [], [], []
    for rows in read_runs(generated, keys, "turns.parquet", _with_token_columns):
        windows.append(by_token_index(rows.lazy()).collect())
        asked.append(_without_texts(questions_of(rows.lazy(), "run")).collect())
        turns.append(rows.drop(TURN_LISTS))
    return joined(turns), joined(windows).sort("run", "start"), joined(asked)


def _with_token_columns(turns: pl.LazyFrame) -> pl.LazyFrame:
    """Turns with what is known from the NLL of each token; of their texts and lists only those
    that other tables are made of."""
    not_finite = how_many_not_finite("reference_token_nll")
    texts = [name for name in TURN_TEXTS if name not in TURN_LISTS]
    # The list of questions is named, so that a file without it is refused by name.
    return turns.with_columns(*early_columns(), RECALL_COLUMN, not_finite.alias(IN_LISTS)).drop(
        texts
    )


def _without_texts(questions: pl.LazyFrame) -> pl.LazyFrame:
    """Recall questions with what is known from their texts and from the NLL of each distractor."""
    return questions.with_columns(
        how_many_not_finite("distractor_nll").alias(IN_LISTS),
        n_distractors=pl.col("distractors").list.len(),
        # The best distractor is known only if every one was measured.
        margin=pl.when(all_finite(pl.col("distractor_nll"))).then("margin"),
        confidence=confidence_column(),
    ).drop(RECALL_TEXTS)


def _overshoot(top: pl.Expr) -> pl.Expr:
    before = pl.col("slots_after_prefill") - pl.col("prompt_tokens")
    least = pl.max_horizontal(before, "threshold_tokens")
    past = (top - least).clip(lower_bound=0)
    # max_horizontal skips nulls, so a run without a threshold must be named.
    threshold = pl.col("threshold_tokens")
    return pl.when(threshold.is_not_null()).then(past / threshold)


def _with_run_columns(rows: pl.DataFrame, turns: pl.DataFrame) -> pl.DataFrame:
    names = ("model", "dataset", "dialogue", "policy", "positions", "threshold", "seed")
    return rows.join(turns.select("run", *names).unique(), on="run", how="left")


def _floats(column: pl.Series) -> Floats:
    """The column as an array, NaN where a value is missing."""
    return column.cast(pl.Float64).to_numpy()


def _single_value(column: pl.Series) -> int | None:
    values = column.unique()
    return None if len(values) != 1 or values[0] is None else int(values[0])
