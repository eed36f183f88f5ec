"""The questions of the page: what each is about, its answers, its tables, what it leaves open."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import polars as pl

from kvfidelity.analysis.decisions import NOT_TESTED
from kvfidelity.dialogues.needles import DEPTHS
from kvfidelity.findings.open_answers import OPEN, disruption
from kvfidelity.findings.published import PublishedRun
from kvfidelity.findings.sentences import budgets, cost, own_replies, paper, recall, window
from kvfidelity.findings.sources import MODES, RECALL, Source, kept_tokens, main_first
from kvfidelity.findings.wording import (
    CORRECTED,
    PAPER_POLICY,
    STALE,
    cell,
    number,
)
from kvfidelity.records.arms import NO_ARM
from kvfidelity.report.disruption import disruption_answers
from kvfidelity.report.formatting import decimal, megabytes, percent, rounded, signed
from kvfidelity.report.open_questions import open_questions
from kvfidelity.report.position_modes import position_order

#: The threshold of the planted facts whose evictions leave 2,000 tokens.
MAIN = "2000tok"
#: A table: its caption, head and rows.
Shown = tuple[str, list[str], list[list[str]]]


@dataclass(frozen=True)
class Question:
    """A section of the page.

    Attributes:
        key: of `plan.Finding.question`.
        about: what was run.
        answers: sentences with numbers of a run.
        tables: its tables.
        not_shown: what the section does not show.
    """

    key: str
    title: str
    about: str
    answers: Callable[[PublishedRun], list[str]]
    tables: Callable[[PublishedRun], list[Shown]]
    not_shown: str


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
                str(row["n_dialogues"]),
            ]
        )
    head = ["policy", "excess NLL, stale", "excess NLL, rerotated", "margin lost, rerotated"]
    head += ["right", "right, baseline", "questions", "dialogues"]
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
    return "Excess NLL, nats per token", head, lines


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


#: The kept blocks of `next_checks`, as a reader calls them.
BLOCKS = {
    "block_first": "the first",
    "block_middle": "the middle",
    "block_last": "the last",
    "block_last_with_sinks": "the last with four sinks",
}


def _own(run: PublishedRun) -> Shown:
    lines = [
        [
            row["policy"],
            row["threshold"],
            row["positions"],
            number(row, "lost"),
            *(decimal(row[name]) for name in ("rep_3", "echo_share", "chrf")),
            percent(row["complete"]),
            str(row["n"]),
            str(row["n_dialogues"]),
        ]
        for row in run.tables["own_replies"].to_dicts()
        if row["policy"] != "baseline"
    ]
    head = ["policy", "threshold", "positions", "NLL lost", "rep-3", "echo", "chrF", "ended"]
    caption = (
        "Own replies; NLL lost: nats per token against the baseline's replies, with nothing "
        "evicted and the baseline's history"
    )
    return caption, [*head, "replies", "dialogues"], lines


def _verdict_means(run: PublishedRun) -> Shown:
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


def _overshoot(run: PublishedRun) -> Shown:
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


def _changes(run: PublishedRun) -> Shown:
    lines = [
        [row["change"], number(row, digits=3), str(row["n_dialogues"])]
        for row in run.tables["window_changes"].to_dicts()
    ]
    return "Changes of NLL, nothing evicted", ["change", "nats per token", "dialogues"], lines


def _balance(run: PublishedRun) -> Shown:
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


def _healings(run: PublishedRun) -> Shown:
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


def _arms(run: PublishedRun) -> Shown:
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


def _arms_asked(run: PublishedRun) -> Shown:
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


def _penalties(run: PublishedRun) -> Shown:
    lines = [
        [row["policy"], row["positions"], number(row), str(row["n_dialogues"])]
        for row in run.tables["penalties"].to_dicts()
    ]
    head = ["policy", "positions", "change", "dialogues"]
    return "Excess NLL with a penalty for disruption against the same without", head, lines


def _timing(run: PublishedRun) -> Shown:
    lines = [
        [
            row["policy"],
            row["positions"] if row["policy"] != "baseline" else "",
            megabytes(row["cache_bytes_end"]),
            *(decimal(_ms(row[name]), 1) for name in ("ttft_s", "tpot_s")),
            rounded(row["decode_tokens_per_s"]),
            *(decimal(row[name], 2) for name in ("eviction_ms", "scoring_ms")),
            str(row["n_evictions"]),
            str(row["n_dialogues"]),
        ]
        for row in run.tables["timing"].to_dicts()
    ]
    head = ["policy", "positions", "cache", "first token, ms", "further token, ms", "tokens/s"]
    head += ["eviction, ms", "ranking, ms", "evictions", "dialogues"]
    return "Medians over dialogues of the same turns", head, lines


def _ms(seconds: float | None) -> float | None:
    return None if seconds is None else 1000 * seconds


def _ends(row: dict[str, Any], value: str, ends: str) -> str:
    prefix = f"{ends}_" if ends else ""
    found = {"mean": row[value], "n_dialogues": row["n_dialogues"]}
    return number(found | {end: row[f"{prefix}{end}"] for end in ("low", "high")})


def _question(run: PublishedRun, wanted: int) -> list[str]:
    """The answer to an open question, then the report's own sentences on it, a list for each
    setting; without those of what a setting does not test. What the paper did comes first, then
    the setting with most sentences."""
    found = {
        _setting(run, answer["setting"]): kept
        for entry in open_questions(run.tables)
        if entry["number"] == wanted
        for answer in entry["answers"]
        if (kept := [text for text in answer["sentences"] if NOT_TESTED not in text])
    }
    ordered = sorted(
        found.items(),
        key=lambda one: (one[0] != PAPER_SETTING, -len(one[1]), -_first_number(one[0])),
    )
    (short,) = (answer for key, _, answer in OPEN if key == f"question{wanted}")
    details = [_listed(f"{setting}:", texts) for setting, texts in ordered]
    return [_sentence(short(run)), *details]


def _first_number(text: str) -> int:
    found = re.match(r"[\d,]+", text)
    return int(found[0].replace(",", "")) if found else 0


def _listed(lead: str, texts: Sequence[str]) -> str:
    """A lead and a list below it, as one item of a list."""
    return "\n".join([lead, *(f"  - {text}" for text in texts)])


#: The setting of question 2 that is the paper's.
PAPER_SETTING = "99% kept by attention, at the trigger of the paper"


def _setting(run: PublishedRun, setting: str) -> str:
    """ "2,000 of 5,600 tokens kept by `h2o`", of "smollm2-135m, test, h2o, half"; without a policy
    of "smollm2-135m, test, third" and of "smollm2-135m, test, 2000 cached tokens"; other settings
    as they are, without the model."""
    rest = setting.removeprefix(f"{run.model}, ")
    _, *policy, last = rest.split(", ")
    if policy == [PAPER_POLICY]:
        return PAPER_SETTING
    size = kept_tokens(run).get(last)
    if size is None and (number := re.fullmatch(r"(\d+) cached tokens", last)):
        size = f"{int(number[1]):,}"
    by = "".join(f" by `{name}`" for name in policy)
    return f"{size} of 5,600 tokens kept{by}" if size else rest


def _disruption(run: PublishedRun) -> list[str]:
    tables = run.tables
    answers = disruption_answers(
        tables["predictor_validation"], tables["penalties"], tables["policies"]
    )
    several = len(answers) > 1
    return [
        _sentence(disruption(run)),
        *(
            f"{entry['dataset']}: {text}" if several else text
            for entry in answers
            for text in entry["sentences"]
        ),
    ]


def _paper_answers(run: PublishedRun) -> list[str]:
    return [_sentence(paper(run))] if run.finding.name == "paper_reference" else own_replies(run)


def _sentence(text: str) -> str:
    return f"{text[:1].upper()}{text[1:]}."


def _budget_answers(run: PublishedRun) -> list[str]:
    modes = Source(run, MODES["equal_budgets"])
    return [_sentence(budgets(modes)), _sentence(recall(Source(run, RECALL["equal_budgets"])))]


def _check_answers(run: PublishedRun) -> list[str]:
    """How far aggregations of scores differ, and what each kept block loses."""
    if run.finding.name == "locomo":
        places = (MAIN,)
        return [_sentence(budgets(Source(run, places))), _sentence(recall(Source(run, places)))]
    texts = []
    rows = run.tables["policies"]
    for mode in ("stale", "rerotated"):
        part = rows.filter(positions=mode).drop_nulls("mean")
        means = {row["policy"]: row for row in part.to_dicts()}
        ways = [name for name in means if name.startswith(("latest_", "accumulated_"))]
        if ways:
            ends = [f(means[name]["mean"] for name in ways) for f in (min, max)]
            texts.append(
                f"With {mode} positions the {len(ways)} ways to combine attention lose "
                f"{signed(ends[0], 2)} to {signed(ends[1], 2)} nats per token"
                f"{_sums(means, ways)}."
            )
        blocks = [name for name in BLOCKS if name in means]
        if blocks:
            shown = ", ".join(f"{BLOCKS[name]} {number(means[name])}" for name in blocks)
            texts.append(f"With {mode} positions the kept block loses: {shown}.")
    return texts


def _sums(means: Mapping[str, Mapping[str, Any]], ways: Sequence[str]) -> str:
    """Whether sums rank slots as means do, as they must."""
    pairs = [
        (means[name]["mean"], means[name.replace("_sum", "_mean")]["mean"])
        for name in ways
        if name.endswith("_sum") and name.replace("_sum", "_mean") in means
    ]
    if not pairs:
        return ""
    most = max(abs(one - other) for one, other in pairs)
    return f"; sums differ from means by at most {most:.4f}"


def _only(*tables: Callable[[PublishedRun], Shown]) -> Callable[[PublishedRun], list[Shown]]:
    return lambda run: [table(run) for table in tables]


def _check_tables(run: PublishedRun) -> list[Shown]:
    # LoCoMo has questions of its own, which no planted fact answers.
    own = [by_depth(run)] if run.finding.name == "locomo" else []
    return [summary(run), *own]


def _paper_tables(run: PublishedRun) -> list[Shown]:
    if run.finding.name == "paper_reference":
        return [losses(run)]
    return [_own(run), _verdict_means(run), _overshoot(run)]


QUESTIONS: Sequence[Question] = (
    Question(
        "paper",
        "1. The paper's setting",
        "Trigger `paper`, thresholds of 4,800 and 5,600 tokens, 99% kept by the latest attention, "
        "or the first 2,000 tokens; once with the dataset's replies, once with own replies of at "
        "most 128 tokens (the paper: 256).\n",
        _paper_answers,
        _paper_tables,
        "Llama-3-8B-Instruct, and the verdicts of a language model: own replies are judged by a "
        "formula and by text measures, which see ruin but not subtle faults. The thresholds are "
        "the paper's in tokens, not in MB.",
    ),
    Question(
        "budgets",
        "2. Equal budgets",
        "5,600 cached tokens are cut to 2,000 or 1,000 before a turn, by ten policies in three "
        "position modes; two facts are planted at each of three depths and asked for after the "
        "last turn.\n",
        _budget_answers,
        _only(summary, losses, forgetting, by_depth),
        "Budgets other than these (2,800 tokens are kept by two policies only), several evictions "
        "after each other at other sizes, and "
        "whether the order of policies holds for larger models, other languages or code.",
    ),
    Question(
        "window",
        "3. Through the trained window",
        "Nothing evicted up to 1.5 trained windows, against a kept beginning, and against sinks "
        "and recent tokens whose positions stay within the window (C1's control).\n",
        lambda run: [_sentence(window(run))],
        _only(_changes, losses),
        "Where conversations are joined (`through_window_joined`), what follows a seam owes "
        "nothing to what precedes it. A model with a longer window than its training in practice "
        "used may degrade earlier or later.",
    ),
    Question(
        "checks",
        "4. The paper's next checks",
        "How attention is combined over heads and layers (mean, max, sum; the latest forward or "
        "accumulated), which contiguous block is kept (first, middle, last), 5,600 tokens to "
        "2,000; and another dialogue set (LoCoMo), whose data the user fetches.\n",
        _check_answers,
        _check_tables,
        "Other aggregations, such as per head, and blocks of other sizes. Of LoCoMo only the first "
        "turns are used, whose tokens stay inside a trained window of 8,192.",
    ),
    Question(
        "question1",
        "5. Open question 1: gist, recency and the salient middle",
        "One policy, `hybrid`, keeps the beginning, recent tokens and salient spans of the "
        "middle; its parts are taken away one by one. 5,600 cached tokens are cut to four sizes.\n",
        lambda run: _question(run, 1),
        _only(_balance),
        "Facts other than planted ones, and shares of the budget other than those of the "
        "configuration.",
    ),
    Question(
        "question2",
        "6. Open question 2: fine-tuning",
        "Adapters are trained on evicted states, on dialogues of the other half, and evaluated "
        "under policies that no training showed ([finetuning.md](finetuning.md)).\n",
        lambda run: _question(run, 2),
        _only(_arms, _arms_asked),
        "Larger models, longer trainings, and other kinds of adapters. Intervals are over "
        "dialogues, with trainings averaged within each: they do not say how far other seeds "
        "would differ. By KL "
        "the control's target is the model itself, so it hardly moves; the pair trained by "
        "cross-entropy has a control that learns.",
    ),
    Question(
        "question3",
        "7. Open question 3: a measure of disruption",
        "Does what an eviction changes in attention order cells by their loss, and is it worth a "
        "penalty in eviction? 5,600 cached tokens are cut before a turn (threshold `turn`) or "
        "after "
        "a prompt (`prompt`), mostly to 2,000, in several position modes; `shifted+64` is "
        "`original` with the next position 64 too far on.\n",
        _disruption,
        _only(losses, _penalties),
        "A cause: cells of a turn share kept tokens, so a correlation is an association.",
    ),
    Question(
        "question4",
        "8. Open question 4: healing",
        "The model is told about the gap, or the gap is closed, right after an eviction of 5,600 "
        "cached tokens, mostly to 2,000. In the table `without` is the loss where nothing is done. "
        "What each healing does: [healing.md](healing.md).\n",
        lambda run: _question(run, 4),
        _only(_healings),
        "Longer lasting effects: the measure is the first 32 tokens after an eviction.",
    ),
    Question(
        "cost",
        "9. What it costs",
        "Single runs, one at a time on one GPU, own replies of at most 32 tokens: bytes, seconds, "
        "milliseconds of an eviction. Turns from a dialogue's first eviction on.\n",
        lambda run: [_sentence(cost(run))],
        _only(_timing),
        "Serving many requests at once, and the engines that do (vLLM, SGLang): this is one "
        "sequence in PyTorch. Models of this size are bound by the processor that starts kernels, "
        "so a smaller cache hardly shows in seconds.",
    ),
)
