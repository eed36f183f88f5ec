"""Tables for papers, in Markdown and LaTeX.

The Snakefile reads `PAPER_TABLES`, so nothing here imports polars.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from kvfidelity.records.grid import CELL_COLUMNS
from kvfidelity.report.formatting import decimal, interval, interval_of, p_value, percent, signed

if TYPE_CHECKING:
    import polars as pl

#: A table's head and its rows.
Content = tuple[list[str], list[list[str]]]
ESCAPED = str.maketrans({sign: f"\\{sign}" for sign in "&%$#_{}"})


def markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A pipe table; bars inside cells are escaped."""
    lines = [head, ["---"] * len(head), *rows]
    return "".join(
        f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in row)} |\n" for row in lines
    )


def latex(head: Sequence[str], rows: Sequence[Sequence[str]], caption: str) -> str:
    """A booktabs table."""
    lines = [r"\begin{table}", r"  \centering", rf"  \caption{{{_escaped(caption)}}}"]
    lines += [rf"  \begin{{tabular}}{{{'l' * len(head)}}}", r"    \toprule"]
    lines += [f"    {' & '.join(map(_escaped, head))} \\\\", r"    \midrule"]
    lines += [f"    {' & '.join(map(_escaped, row))} \\\\" for row in rows]
    lines += [r"    \bottomrule", r"  \end{tabular}", r"\end{table}", ""]
    return "\n".join(lines)


def policy_table(policies: pl.DataFrame) -> Content:
    """Policy x position mode with excess NLL, interval, budget and n."""
    head = [*CELL_COLUMNS, "excess NLL", "interval", "budget", "dialogues", "turns"]
    return head, [
        [
            *(str(row[name]) for name in CELL_COLUMNS),
            signed(row["mean"]),
            interval(row),
            str(row["budget_tokens"] or "own size"),
            str(row["n_dialogues"]),
            str(row["n_turns"]),
        ]
        for row in policies.to_dicts()
    ]


def contrast_table(contrasts: pl.DataFrame) -> Content:
    """Paired differences with interval and n, and adjusted p where there are enough dialogues."""
    tested = contrasts["p_holm"].is_not_null().any()
    head = ["model", "dataset", "within", "contrast", "difference", "interval"]
    head += [*(["p (Holm)"] if tested else []), "dialogues"]
    return head, [
        [
            str(row["model"]),
            str(row["dataset"]),
            f"{row['policy'] or row['positions']}, {row['threshold']}",
            f"{row['first']} - {row['second']}",
            signed(row["mean"]),
            interval(row),
            *([p_value(row["p_holm"])] if tested else []),
            str(row["n_dialogues"]),
        ]
        for row in contrasts.to_dicts()
    ]


def recall_table(table: pl.DataFrame) -> Content:
    """Recall by depth with intervals, the loss against the baseline, and n."""
    names = (*CELL_COLUMNS, "origin", "depth")
    head = [*names, "right", "interval", "lost", "interval", "chance", "questions", "dialogues"]
    return head, [
        [
            *(str(row[name]) for name in names),
            percent(row["recalled"]),
            _percents(row, "recalled"),
            percent(row["recall_lost"]),
            _percents(row, "recall_lost"),
            percent(row["chance"]),
            str(row["n_questions"]),
            str(row["n_dialogues"]),
        ]
        for row in table.to_dicts()
    ]


def claim_table(claims: pl.DataFrame) -> Content:
    """Each claim's decision with estimate, interval and n."""
    head = ["claim", "statement", "model", "cell", "decision", "estimate", "interval", "dialogues"]
    return head, [
        [
            row["claim"],
            row["statement"],
            row["model"] or "",
            cell_name(row),
            row["decision"],
            signed(row["estimate"]),
            "" if row["estimate"] is None else interval(row),
            str(row["n_dialogues"]),
        ]
        for row in claims.to_dicts()
    ]


def verdict_table(means: pl.DataFrame) -> Content:
    """Mean verdict per judge and cell with interval and n, and the difference from the baseline."""
    names = ("judge", *CELL_COLUMNS)
    head = [*names, "mean", "interval", "difference", "interval", "pairs"]
    head += ["verdicts", "missing", "dialogues"]
    return head, [
        [
            *(str(row[name]) for name in names),
            decimal(row["mean"]),
            interval(row, 2),
            signed(row["difference"], 2),
            interval_of(row, "difference"),
            "" if row["n_pairs"] is None else str(row["n_pairs"]),
            str(row["n"]),
            str(row["missing"]),
            str(row["n_dialogues"]),
        ]
        for row in means.to_dicts()
    ]


def own_reply_table(replies: pl.DataFrame) -> Content:
    """The model's own replies per cell: NLL with nothing evicted, after the baseline's history and
    after their own, repetition, overlap."""
    head = [*CELL_COLUMNS, "NLL", "interval", "lost", "interval", "own history"]
    head += ["rep-3", "echo", "chrF", "ended", "empty", "replies", "dialogues"]
    return head, [
        [
            *(str(row[name]) for name in CELL_COLUMNS),
            decimal(row["history_nll"]),
            interval_of(row, "history_nll"),
            signed(row["lost"], 2),
            interval_of(row, "lost"),
            decimal(row["mean"]),
            *(decimal(row[name]) for name in ("rep_3", "echo_share", "chrf", "complete")),
            str(row["empty"]),
            str(row["n"]),
            str(row["n_dialogues"]),
        ]
        for row in replies.to_dicts()
    ]


def window_table(changes: pl.DataFrame) -> Content:
    """Changes of the baseline's NLL along the trained window with interval and n."""
    head = ["model", "dataset", "change", "nats per token", "interval", "runs", "dialogues"]
    return head, [
        [
            *(str(row[name]) for name in head[:3]),
            signed(row["mean"]),
            interval(row),
            str(row["n_runs"]),
            str(row["n_dialogues"]),
        ]
        for row in changes.to_dicts()
    ]


def overshoot_table(overshoot: pl.DataFrame) -> Content:
    """How far reading the prompt alone takes the cache past its threshold."""
    head = ["model", "policy", "threshold", "turns", "past it", "at most", "MB"]
    return head, [
        [
            *(str(row[name]) for name in ("model", "policy", "threshold", "turns", "turns_past")),
            percent(row["share_max"]),
            decimal(None if row["bytes_max"] is None else row["bytes_max"] / 1e6),
        ]
        for row in overshoot.to_dicts()
    ]


class PaperTable(NamedTuple):
    """How a table is written for papers."""

    content: Callable[[pl.DataFrame], Content]
    caption: str


#: The tables that are written for papers, by name.
PAPER_TABLES = {
    "claims": PaperTable(claim_table, "Claims and what the data say about them"),
    "policies": PaperTable(policy_table, "Excess NLL (nats per reference token) over the baseline"),
    "contrasts": PaperTable(
        contrast_table, "Paired differences in excess NLL on the same dialogue and turn"
    ),
    "recall_by_depth": PaperTable(
        recall_table, "Share of questions answered right by the depth of the evidence"
    ),
    "verdict_means": PaperTable(verdict_table, "Mean verdict (1 to 10) on the own replies"),
    "own_replies": PaperTable(
        own_reply_table,
        "Own replies: NLL (nats per token) with nothing evicted after the baseline's history, what "
        "is lost against the baseline on the same turns, NLL after their own history, and text",
    ),
    "window_changes": PaperTable(
        window_table, "Changes of the baseline's NLL along the trained window"
    ),
    "prefill_overshoot": PaperTable(
        overshoot_table, "How far the prompt alone takes the cache past its threshold"
    ),
}


def claim_question(row: Mapping[str, Any]) -> str:
    """ "above 0.5?": the direction and margin of a claim."""
    match row["direction"]:
        case "above":
            return f"above {row['margin']:g}{share_of(row)}?"
        case "below":
            below = signed(-row["margin"], 3).rstrip("0").rstrip(".")
            return f"below {below}{share_of(row)}?"
        case _:
            return f"within ±{row['margin']:g}{share_of(row)}?"


def share_of(row: Mapping[str, Any]) -> str:
    """What estimate and margin are shares of."""
    match row["margin_of"]:
        case None:
            return ""
        case "baseline_nll":
            return " times the baseline's NLL"
        case "of":
            return " times the first cell's own"
        case _:
            return f" times that of {row['against']}"


def cell_name(row: Mapping[str, Any], with_threshold: bool = True) -> str:
    """ "gist, stale (half) minus attention_top, stale", or "all cells, stale"; empty for a claim
    without an estimate."""
    if row["policy"] is None:
        mode = f", {row['positions']}" if row["positions"] else ""
        return f"all cells{mode}" if row["estimate"] is not None else ""
    shown = with_threshold and row["threshold"] != "none"
    threshold = f" ({row['threshold']})" if shown else ""
    positions = "" if row["threshold"] == "none" else f", {row['positions']}"
    name = f"{row['policy']}{positions}{threshold}"
    return f"{name} minus {row['against']}" if row["against"] else name


def _percents(row: Mapping[str, Any], name: str) -> str:
    low, high = row[f"{name}_low"], row[f"{name}_high"]
    return "" if low is None else f"[{percent(low)}, {percent(high)}]"


def _escaped(text: str) -> str:
    plain = text.replace("\\", r"\textbackslash{}") if "\\" in text else text.translate(ESCAPED)
    return plain.replace("\N{MINUS SIGN}", "$-$").replace("\N{EN DASH}", "--")
