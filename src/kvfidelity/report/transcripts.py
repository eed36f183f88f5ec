"""What the page needs to open any cell: replies, conversations token by token, and what was cached.

Conversations are cut into tokens again, with the model's own tokenizer; a run whose recorded token
counts do not agree is shown without its cache.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import polars as pl

from kvfidelity.analysis.finite import missing_if_not_finite
from kvfidelity.dialogues.pool import Turn
from kvfidelity.dialogues.segments import ChatSegmenter, Segment
from kvfidelity.dialogues.templates import MessageError
from kvfidelity.dialogues.tokenizer import load_tokenizer
from kvfidelity.records.grid import CELL_COLUMNS, TOKENIZER
from kvfidelity.records.questions import questions
from kvfidelity.report.formatting import count

#: Characters of the page's data at most; later dialogues are left out and counted.
MAX_CHARACTERS = 6_000_000
NUMBERS = ("excess_nll", "kl_baseline", "reference_nll", "retained_share", "phase_distortion")
#: The columns of `turns` and of `evictions` that are used here.
COLUMNS = (
    *("run", *CELL_COLUMNS, "dialogue", "seed", "kind", "turn", "replies"),
    *("tokens_seen_start", "tokens_seen_end", "prompt_tokens", "reply_tokens", *NUMBERS),
)
COLUMNS_OF_EVICTIONS = ("run", "turn", "step", "tokens_seen", "token_spans")
REPLACEMENT = "\N{REPLACEMENT CHARACTER}"


def build_transcripts(
    turns: pl.DataFrame,
    evictions: pl.DataFrame,
    results: Path,
    session: Mapping[str, Any],
    max_characters: int = MAX_CHARACTERS,
) -> dict[str, Any]:
    """Conversations and runs of the first dialogues, as many as there is room for.

    Args:
        turns, evictions: the tables of those names.
        results: where the artifacts lie that hold the texts, and the tokenizers.
        session: its settings that say which tokens are fed.

    Returns:
        `conversations`: by name, `title`, `turns` (token indices of reply and end) and `tokens`
        (text of each token; empty if it is not known). `runs`: per run its conversation, cell,
        `turns` (prompt, reply, reference, numbers), `questions` (recall questions,
        answer, own reply, margin) and `kept`: by turn after which an eviction
        happened, [start, stop, share] of token indices still cached, tokens fed since then aside.
        `left_out`: dialogues there was no room for.
    """
    data: dict[str, Any] = {"conversations": {}, "runs": [], "left_out": 0}
    tokenizers: dict[str, Any] = {}
    used = 0
    groups = turns.select("model", "dataset", "dialogue").unique(maintain_order=True)
    for model, dataset, dialogue in groups.sort("dialogue", maintain_order=True).iter_rows():
        if used > max_characters:
            data["left_out"] += 1
            continue
        # Only the rows of dialogues that are shown are copied.
        part = turns.filter(model=model, dataset=dataset, dialogue=dialogue)
        pair = f"{model}/{dataset}"
        if pair not in tokenizers:
            tokenizers[pair] = _tokenizer(results / "dialogues" / pair / TOKENIZER)
        keys = part["run"].unique().sort().to_list()
        texts = _texts(results, keys)
        logs = evictions.filter(pl.col("run").is_in(keys)).partition_by("run", as_dict=True)
        for run in part.partition_by("run", maintain_order=True):
            key = str(run["run"][0])
            rows = run.join(texts.filter(pl.col("run") == key), on="turn").sort("turn")
            own = rows["replies"][0] == "own"
            name = key if own else f"{model}/{dataset}/{dialogue}"
            if name not in data["conversations"]:
                title = f"{dataset} {dialogue}, {model}"
                conversation = _conversation(rows, tokenizers[pair], session)
                data["conversations"][name] = conversation | {"title": title}
                used += sum(map(len, conversation["tokens"])) + 3 * len(conversation["tokens"])
            entry = _run(rows, logs.get((key,)), name) | {"questions": _probe_answers(results, key)}
            data["runs"].append(entry)
            used += len(str(entry))
    return data


def token_texts(tokenizer: Any, ids: Sequence[int]) -> list[str]:
    """The text of each token, so that joined they give the text of all.

    Tokens that share one character give it to the first of them.
    """
    texts: list[str] = []
    index = 0
    while index < len(ids):
        stop = index + 1
        text = _decoded(tokenizer, ids[index:stop])
        while REPLACEMENT in text and stop < min(len(ids), index + 4):
            longer = _decoded(tokenizer, ids[index : stop + 1])
            stop += 1
            if REPLACEMENT not in longer:
                text = longer
                break
        else:
            stop = index + 1
        texts += [text, *[""] * (stop - index - 1)]
        index = stop
    return texts


def _decoded(tokenizer: Any, ids: Sequence[int]) -> str:
    text = str(tokenizer.decode(list(ids), clean_up_tokenization_spaces=False))
    # Sentencepiece drops the space that the first token begins with.
    drops_space = str(tokenizer.convert_ids_to_tokens(ids[0])).startswith(
        "\N{LOWER ONE EIGHTH BLOCK}"
    )
    return f" {text}" if drops_space and not text.startswith(" ") else text


def _tokenizer(directory: Path) -> Any:
    if not (directory / "tokenizer_config.json").is_file():
        return None
    return load_tokenizer(directory)


def _texts(results: Path, keys: list[str]) -> pl.DataFrame:
    folder = results / "generate"
    files = [folder / key / "turns.parquet" for key in keys]
    columns = ["turn", "prompt", "reply", "reference"]
    scans = [
        pl.scan_parquet(file, glob=False).select(pl.lit(key).alias("run"), *columns)
        for file, key in zip(files, keys, strict=True)
    ]
    return pl.concat(scans).collect()


def _probe_answers(results: Path, key: str) -> list[dict[str, Any]]:
    columns = ("turn", "depth", "question", "answer", "reply", "chosen", "margin")
    turns = pl.scan_parquet(results / "generate" / key / "turns.parquet", glob=False)
    rows = questions(turns).select(columns).collect()
    return missing_if_not_finite(rows).with_columns(pl.col("margin").round(2)).to_dicts()


def _conversation(rows: pl.DataFrame, tokenizer: Any, session: Mapping[str, Any]) -> dict[str, Any]:
    bounds = rows.select(pl.col("tokens_seen_start") + pl.col("prompt_tokens"), "tokens_seen_end")
    conversation: dict[str, Any] = {"turns": [list(row) for row in bounds.rows()], "tokens": []}
    if tokenizer is None or rows["tokens_seen_end"].null_count():
        return conversation
    own = rows["replies"][0] == "own"
    answered = "reply" if own else "reference"
    turns = [Turn(str(row["prompt"]), str(row[answered] or "")) for row in rows.to_dicts()]
    cuts = {name: limit for name, limit in session.items() if name.startswith("max_")}
    try:
        segments = ChatSegmenter(tokenizer).segments(turns, **cuts)
    except MessageError:  # an own reply that is whitespace alone
        return conversation
    if own:
        end = session["feed_end_of_turn"]
        segments = [
            Segment(
                part.prompt_ids,
                (*part.opening_ids, *(part.reply_ids if end else part.text_ids)),
            )
            for part in segments
        ]
    if _counts_match(rows, segments):
        ids = [token for part in segments for token in (*part.prompt_ids, *part.reply_ids)]
        conversation["tokens"] = token_texts(tokenizer, ids)
    return conversation


def _counts_match(rows: pl.DataFrame, segments: Sequence[Segment]) -> bool:
    counts = [(len(part.prompt_ids), len(part.reply_ids)) for part in segments]
    return counts == rows.select("prompt_tokens", "reply_tokens").rows()


def _run(rows: pl.DataFrame, log: pl.DataFrame | None, conversation: str) -> dict[str, Any]:
    first = rows.row(0, named=True)
    cell = {name: first[name] for name in (*CELL_COLUMNS, "seed", "kind")}
    shown = rows.select(
        "prompt", "reply", "reference", *[pl.col(name).round(3) for name in NUMBERS]
    )
    return cell | {
        "conversation": conversation,
        "turns": shown.to_dicts(),
        "kept": _retained_spans(log),
    }


def _retained_spans(log: pl.DataFrame | None) -> dict[str, Any]:
    """What each turn's last eviction left, and up to which token index it saw."""
    if log is None:
        return {}
    kept = {}
    last = log.filter(pl.col("step") == pl.col("step").max().over("turn"))
    for (turn,), part in last.partition_by("turn", as_dict=True).items():
        spans: dict[tuple[int, int], float] = {}
        for start, stop, weight in _spans_of(part):
            spans[start, stop] = spans.get((start, stop), 0.0) + weight
        merged = [[start, stop, round(share, 3)] for (start, stop), share in sorted(spans.items())]
        kept[str(turn)] = {"seen": int(part["tokens_seen"][0]), "spans": merged}
    return kept


def _spans_of(last: pl.DataFrame) -> list[tuple[int, int, float]]:
    """Stretches of tokens that the keep sets of one eviction hold, with the weight of a keep set.

    Args:
        last: the rows of that eviction in the log.
    """
    weight = 1 / last.height
    kept = last["token_spans"].to_list()
    return [(span["start"], span["stop"], weight) for row in kept for span in row]


def transcripts_summary(rows: Mapping[str, Any]) -> str:
    """What the page says above the replies."""
    conversations = count(len({run["conversation"] for run in rows["runs"]}), "conversation")
    text = f"{count(len(rows['runs']), 'run')} of {conversations}"
    if rows["left_out"]:
        text += f"; {rows['left_out']} more are left out to keep the page small"
    return text
