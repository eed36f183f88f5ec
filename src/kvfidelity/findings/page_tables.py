"""The tables of the page: a caption, a head and rows, each of one run's published tables."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import polars as pl

from kvfidelity.dialogues.needles import DEPTHS
from kvfidelity.findings.published import PublishedRun
from kvfidelity.findings.sources import kept_tokens, main_first
from kvfidelity.findings.wording import (
    CORRECTED,
    STALE,
    cell,
    number,
)
from kvfidelity.records.arms import NO_ARM
from kvfidelity.report.formatting import decimal, megabytes, percent, rounded
from kvfidelity.report.position_modes import position_order

#: The threshold of the planted facts whose evictions leave 2,000 tokens.
MAIN = "2000tok"
#: A table: its caption, head and rows.
Shown = tuple[str, list[str], list[list[str]]]


def summary(run: PublishedRun) -> Shown:
    """What a reader chooses a policy by, at 2,000 of 5,600 tokens: loss with stale and corrected
    positions, and what is forgotten with corrected ones."""
    threshold = MAIN
    board = run.tables["leaderboard"].filter(positions=CORRECTED, threshold=threshold)
    lines = []
    for row in board.drop_nulls("mean").sort("mean", "policy").to_dicts():
        stale = cell(run, row["policy"], STALE, threshold)
        asked = number(row, "margin_lost") if row["margin_lost"] is not None else ""
        lines.append(
            [
                row["policy"],
                *(number(each) for each in (stale, row)),
                asked,
                percent(row["recalled"]),
                percent(row["recalled_baseline"]),
                str(row["n_questions"]),
                str(row["n_turns"]),
                str(row["n_dialogues"]),
            ]
        )
    head = ["policy", "excess NLL, stale", "excess NLL, rerotated", "margin lost, rerotated"]
    head += ["right", "right, baseline", "questions", "turns of the loss", "their dialogues"]
    caption = "With 2,000 of 5,600 tokens kept, the least loss with rerotated positions first"
    return caption, head, lines


def losses(run: PublishedRun) -> Shown:
    """Excess NLL, a row per policy and threshold, a column per position mode."""
    rows = run.tables["policies"].filter(pl.col("threshold") != "none")
    modes = sorted(rows["positions"].unique(), key=position_order)
    sizes = kept_tokens(run)
    lines = []
    for (threshold, policy), part in rows.sort("threshold", "policy").group_by(
        "threshold", "policy", maintain_order=True
    ):
        by_mode = {row["positions"]: row for row in part.to_dicts()}
        cells = [number(by_mode.get(mode)) if mode in by_mode else "" for mode in modes]
        counts = sorted({row["n_dialogues"] for row in by_mode.values()})
        size = sizes.get(str(threshold), "own size")
        lines.append([str(policy), str(threshold), size, *cells, " to ".join(map(str, counts))])
    head = ["policy", "threshold", "kept", *modes, "dialogues"]
    inside = " of turns inside the trained window" if run.finding.question == "window" else ""
    return f"Excess NLL{inside}, nats per token", head, lines


def forgetting(run: PublishedRun) -> Shown:
    """What each policy forgets at corrected positions, the least first."""
    rows = run.tables["leaderboard"].filter(positions="rerotated").drop_nulls("margin_lost")
    lines = [
        [
            row["threshold"],
            row["policy"],
            number(row, "margin_lost"),
            percent(row["recalled"]),
            percent(row["recalled_baseline"]),
            str(row["n_questions"]),
            str(row["n_dialogues"]),
        ]
        for row in rows.sort("threshold", "margin_lost", "policy").to_dicts()
    ]
    head = ["threshold", "policy", "margin lost", "right", "baseline", "questions", "dialogues"]
    return (
        "Planted facts with corrected (rerotated) positions, the least forgotten first",
        head,
        lines,
    )


def by_depth(run: PublishedRun) -> Shown:
    """Share of planted facts that are answered right, by depth, at corrected positions."""
    table = run.tables["recall_by_depth"]
    rows = table.filter((pl.col("positions") == "rerotated") | (pl.col("kind") == "baseline"))
    lines = []
    keys = ("threshold", "policy", "origin")
    for key, part in rows.sort(keys).group_by(keys, maintain_order=True):
        right = {row["depth"]: percent(row["recalled"]) for row in part.to_dicts()}
        asked = f"{min(part['n_questions'].to_list())} a depth"
        lines.append([*map(str, key), *(right.get(d, "") for d in DEPTHS), asked])
    return "Right answers by depth", [*keys, *DEPTHS, "questions"], lines


def own_replies_table(run: PublishedRun) -> Shown:
    lines = [
        [
            row["policy"],
            row["threshold"],
            row["positions"],
            number(row, "lost"),
            str(row["n_pairs"]),
            *(decimal(row[name]) for name in ("rep_3", "echo_share", "chrf")),
            percent(row["complete"]),
            str(row["n"]),
            str(row["n_dialogues"]),
        ]
        for row in run.tables["own_replies"].to_dicts()
        if row["policy"] != "baseline"
    ]
    head = [
        "policy",
        "threshold",
        "positions",
        "NLL lost",
        "pairs",
        "rep-3",
        "echo",
        "chrF",
        "ended",
    ]
    caption = (
        "Own replies; NLL lost: nats per token against the baseline's replies, with nothing "
        "evicted and the baseline's history, in pairs of which both are inside the trained window"
    )
    return caption, [*head, "replies", "dialogues"], lines


def verdict_means(run: PublishedRun) -> Shown:
    lines = [
        [
            row["judge"],
            row["policy"],
            row["threshold"],
            row["positions"],
            decimal(row["mean"]),
            number(row, "difference"),
            str(row["n"]),
            str(row["n_dialogues"]),
        ]
        for row in run.tables["verdict_means"].to_dicts()
    ]
    head = ["judge", "policy", "threshold", "positions", "mean", "against the baseline", "replies"]
    return "Scores of own replies, 1 to 10, by the formula", [*head, "dialogues"], lines


def overshoot(run: PublishedRun) -> Shown:
    lines = [
        [
            row["policy"],
            row["threshold"],
            f"{row['turns_past']} of {row['turns']}",
            percent(row["share_max"]),
            megabytes(row["bytes_max"]),
        ]
        for row in run.tables["prefill_overshoot"].to_dicts()
    ]
    head = ["policy", "threshold", "turns past it", "at most", "bytes"]
    return "How far a prompt alone takes the cache past its threshold", head, lines


def window_changes(run: PublishedRun) -> Shown:
    lines = [
        [row["change"], number(row, digits=3), str(row["n_dialogues"])]
        for row in run.tables["window_changes"].to_dicts()
    ]
    return "Changes of NLL, nothing evicted", ["change", "nats per token", "dialogues"], lines


def balance(run: PublishedRun) -> Shown:
    rows = run.tables["balance"].filter(positions="rerotated")
    lines = [
        [
            f"{row['budget_tokens']:,}",
            row["policy"],
            _ends(row, "excess_nll", "excess"),
            _ends(row, "middle_lost", "middle"),
            "yes" if row["on_front"] else "no",
            str(row["n_questions"]),
            str(row["n_dialogues"]),
        ]
        for row in rows.sort(-pl.col("budget_tokens"), "excess_nll", "policy").to_dicts()
    ]
    head = ["kept", "policy", "excess NLL", "middle's margin lost", "on the front"]
    return "Loss and what of the middle is forgotten", [*head, "questions", "dialogues"], lines


def healings(run: PublishedRun) -> Shown:
    sizes = kept_tokens(run)
    lines = [
        [
            sizes.get(row["threshold"], row["threshold"]),
            row["policy"],
            row["positions"],
            rounded(row["early_excess_nll_without"]),
            _ends(row, "difference", ""),
            decimal(row["p_holm"], 3),
            str(row["n_dialogues"]),
        ]
        for row in main_first(run.tables["healings"]).to_dicts()
    ]
    head = ["kept", "policy", "positions", "without", "change", "p (Holm)", "dialogues"]
    return "Excess NLL of the first 32 tokens after an eviction", head, lines


#: What an arm is compared with in its own cell, and the base model with corrected positions.
ARM_HEAD = ["policy", "threshold", "positions", "arm"]
ARM_AGAINST = ("the base model", "its control", "the base model, rerotated")


def arms(run: PublishedRun) -> Shown:
    """A row per cell and arm; with nothing evicted the difference to the base model is the tax."""
    lines = []
    for key, part in _cells_of_arms(run.tables["finetuning"].filter(measure="reference_nll")):
        compared = {_against(row): _ends(row, "difference", "") for row in part.to_dicts()}
        first = part.row(0, named=True)
        ends = [compared.get(name, "") for name in ARM_AGAINST]
        counts = [str(first[name]) for name in ("n_seeds", "n_dialogues")]
        lines.append([*key, decimal(first["value"], 2), *ends, *counts])
    head = [*ARM_HEAD, "NLL", *(f"against {name}" for name in ARM_AGAINST)]
    caption = "NLL of the dataset's replies by what a training showed, nats per token"
    return caption, [*head, "trainings", "dialogues"], lines


def arms_asked(run: PublishedRun) -> Shown:
    """The same of needles and of own replies, against the base model in the same cell."""
    names = [f"margin_{depth}" for depth in DEPTHS] + ["own_repetition"]
    rows = run.tables["finetuning"].filter(pl.col("measure").is_in(names), against=NO_ARM)
    rows = rows.filter(pl.col("positions") == pl.col("against_positions"))
    lines = []
    for key, part in _cells_of_arms(rows):
        found = {row["measure"]: _ends(row, "difference", "") for row in part.to_dicts()}
        lines.append([*key, *(found.get(name, "") for name in names), _extent(part)])
    head = [*ARM_HEAD, *(f"margin, {depth}" for depth in DEPTHS), "rep-3 of own replies"]
    caption = "Planted facts by depth (nats) and own replies, against the base model"
    return caption, [*head, "dialogues"], lines


def _cells_of_arms(rows: pl.DataFrame) -> Iterator[tuple[list[str], pl.DataFrame]]:
    """The rows of each policy, threshold, position mode and arm."""
    for key, part in rows.sort(ARM_HEAD).group_by(ARM_HEAD, maintain_order=True):
        yield [str(name) for name in key], part


def _against(row: Mapping[str, Any]) -> str:
    base, control, rerotated = ARM_AGAINST
    if row["against"] != NO_ARM:
        return control
    return base if row["against_positions"] == row["positions"] else rerotated


def _extent(rows: pl.DataFrame) -> str:
    """ "23 to 24", of numbers of dialogues."""
    return " to ".join(str(number) for number in sorted(set(rows["n_dialogues"])))


def penalties(run: PublishedRun) -> Shown:
    lines = [
        [row["policy"], row["positions"], number(row), str(row["n_dialogues"])]
        for row in run.tables["penalties"].to_dicts()
    ]
    head = ["policy", "positions", "change", "dialogues"]
    return "Excess NLL with a penalty for disruption against the same without", head, lines


def timing(run: PublishedRun) -> Shown:
    lines = [
        [
            row["policy"],
            row["positions"] if row["policy"] != "baseline" else "",
            megabytes(row["cache_bytes_end"]),
            *(decimal(_ms(row[name]), 1) for name in ("ttft_s", "tpot_s")),
            rounded(row["decode_tokens_per_s"]),
            *(decimal(row[name], 2) for name in ("scoring_ms", "eviction_ms")),
            str(row["n_evictions"]),
            str(row["n_turns"]),
            str(row["n_dialogues"]),
        ]
        for row in run.tables["timing"].to_dicts()
    ]
    head = ["policy", "positions", "cache", "first token, ms", "further token, ms", "tokens/s"]
    head += ["ranking, ms", "moving, ms", "evictions", "turns", "dialogues"]
    caption = (
        "Medians over dialogues of the same turns, ranking and moving per eviction; where fewer "
        "than half of the turns evict, the median first token waits for none"
    )
    return caption, head, lines


def _ms(seconds: float | None) -> float | None:
    return None if seconds is None else 1000 * seconds


def _ends(row: dict[str, Any], value: str, ends: str) -> str:
    prefix = f"{ends}_" if ends else ""
    found = {"mean": row[value], "n_dialogues": row["n_dialogues"]}
    return number(found | {end: row[f"{prefix}{end}"] for end in ("low", "high")})
