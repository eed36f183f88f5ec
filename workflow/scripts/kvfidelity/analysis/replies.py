"""What the page needs to open any cell: replies, conversations token by token, and what was cached.

Conversations are cut into tokens again, with the model's own tokenizer; a run whose recorded token
counts do not agree is shown without its cache.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import polars as pl

from kvfidelity.analysis.figures import cached_spans
from kvfidelity.analysis.finite import missing_if_not_finite
from kvfidelity.analysis.tables import CELL
from kvfidelity.dialogues.pool import Turn
from kvfidelity.dialogues.segments import ChatSegmenter, Segment
from kvfidelity.specs import TOKENIZER

#: Characters of the page's data at most; later dialogues are left out and counted.
ROOM = 6_000_000
BROKEN = "\N{REPLACEMENT CHARACTER}"


def open_cells(
    turns: pl.DataFrame,
    evictions: pl.DataFrame,
    results: Path,
    session: Mapping[str, Any],
    room: int = ROOM,
) -> dict[str, Any]:
    """Conversations and runs of the first dialogues, as many as there is room for.

    Args:
        turns, evictions: the tables of those names.
        results: where the artifacts lie that hold the texts, and the tokenizers.
        session: its settings that say which tokens are fed.

    Returns:
        `conversations`: by name, `title`, `turns` (place of reply, end: token indices) and `tokens`
        (text of each token; empty if it is not known). `runs`: per run its conversation, cell,
        `turns` (prompt, reply, reference, numbers), `asked` (questions about what was said before,
        answer, own reply, margin) and `kept`: by turn after which an eviction
        happened, [start, stop, share] of token indices still cached, tokens fed since then aside.
        `left_out`: dialogues there was no room for.
    """
    told: dict[str, Any] = {"conversations": {}, "runs": [], "left_out": 0}
    tokenizers: dict[str, Any] = {}
    used = 0
    groups = turns.sort("dialogue").partition_by("model", "dataset", "dialogue", as_dict=True)
    for (model, dataset, dialogue), part in sorted(groups.items(), key=lambda item: item[0][2]):
        if used > room:
            told["left_out"] += 1
            continue
        pair = f"{model}/{dataset}"
        if pair not in tokenizers:
            tokenizers[pair] = _tokenizer(results / "dialogues" / pair / TOKENIZER)
        places = part["run"].unique().sort().to_list()
        texts = _texts(results, places)
        logs = evictions.filter(pl.col("run").is_in(places)).partition_by("run", as_dict=True)
        for run in part.partition_by("run", maintain_order=True):
            place = str(run["run"][0])
            rows = run.join(texts.filter(pl.col("run") == place), on="turn").sort("turn")
            own = rows["replies"][0] == "own"
            name = place if own else f"{model}/{dataset}/{dialogue}"
            if name not in told["conversations"]:
                title = f"{dataset} {dialogue}, {model}"
                conversation = _conversation(rows, tokenizers[pair], session)
                told["conversations"][name] = conversation | {"title": title}
                used += sum(map(len, conversation["tokens"])) + 3 * len(conversation["tokens"])
            entry = _run(rows, logs.get((place,)), name) | {"asked": _asked(results, place)}
            told["runs"].append(entry)
            used += len(str(entry))
    return told


def pieces(tokenizer: Any, ids: Sequence[int]) -> list[str]:
    """The text of each token, so that joined they give the text of all.

    Tokens that share one character give it to the first of them.
    """
    texts: list[str] = []
    place = 0
    while place < len(ids):
        stop = place + 1
        text = _decoded(tokenizer, ids[place:stop])
        while BROKEN in text and stop < min(len(ids), place + 4):
            longer = _decoded(tokenizer, ids[place : stop + 1])
            stop += 1
            if BROKEN not in longer:
                text = longer
                break
        else:
            stop = place + 1
        texts += [text, *[""] * (stop - place - 1)]
        place = stop
    return texts


def _decoded(tokenizer: Any, ids: Sequence[int]) -> str:
    text = str(tokenizer.decode(list(ids), clean_up_tokenization_spaces=False))
    # Sentencepiece drops the space that the first token begins with.
    lost = str(tokenizer.convert_ids_to_tokens(ids[0])).startswith("\N{LOWER ONE EIGHTH BLOCK}")
    return f" {text}" if lost and not text.startswith(" ") else text


def _tokenizer(directory: Path) -> Any:
    if not (directory / "tokenizer_config.json").is_file():
        return None
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(directory)


def _texts(results: Path, places: list[str]) -> pl.DataFrame:
    folder = results / "generate"
    files = [folder / place / "turns.parquet" for place in places]
    columns = ["turn", "prompt", "reply", "reference"]
    scans = [
        pl.scan_parquet(file).select(pl.lit(place).alias("run"), *columns)
        for file, place in zip(files, places, strict=True)
    ]
    return pl.concat(scans).collect()


def _asked(results: Path, place: str) -> list[dict[str, Any]]:
    columns = ("turn", "depth", "question", "answer", "reply", "chosen", "margin")
    rows = pl.read_parquet(results / "generate" / place / "recall.parquet", columns=list(columns))
    return missing_if_not_finite(rows).with_columns(pl.col("margin").round(2)).to_dicts()


def _conversation(rows: pl.DataFrame, tokenizer: Any, session: Mapping[str, Any]) -> dict[str, Any]:
    bounds = rows.select(pl.col("tokens_seen_start") + pl.col("prompt_tokens"), "tokens_seen_end")
    told: dict[str, Any] = {"turns": [list(row) for row in bounds.rows()], "tokens": []}
    if tokenizer is None or rows["tokens_seen_end"].null_count():
        return told
    own = rows["replies"][0] == "own"
    answered = "reply" if own else "reference"
    turns = [Turn(str(row["prompt"]), str(row[answered] or "")) for row in rows.to_dicts()]
    cuts = {name: limit for name, limit in session.items() if name.startswith("max_")}
    segments = ChatSegmenter(tokenizer).segments(turns, **cuts)
    if own and not session["feed_end_of_turn"]:
        segments = [Segment(part.prompt_ids, part.reply_ids[:-1]) for part in segments]
    if _agree(rows, segments):
        ids = [token for part in segments for token in (*part.prompt_ids, *part.reply_ids)]
        told["tokens"] = pieces(tokenizer, ids)
    return told


def _agree(rows: pl.DataFrame, segments: Sequence[Segment]) -> bool:
    counts = [(len(part.prompt_ids), len(part.reply_ids)) for part in segments]
    return counts == rows.select("prompt_tokens", "reply_tokens").rows()


def _run(rows: pl.DataFrame, log: pl.DataFrame | None, conversation: str) -> dict[str, Any]:
    first = rows.row(0, named=True)
    cell = {name: first[name] for name in (*CELL, "seed", "kind")}
    numbers = ("excess_nll", "kl_full", "reference_nll", "retained_share", "phase_distortion")
    shown = rows.select(
        "prompt", "reply", "reference", *[pl.col(name).round(3) for name in numbers]
    )
    return cell | {"conversation": conversation, "turns": shown.to_dicts(), "kept": _kept(log)}


def _kept(log: pl.DataFrame | None) -> dict[str, Any]:
    """By turn: what its last eviction left, and up to which token index it saw."""
    if log is None:
        return {}
    kept = {}
    for (turn,), part in log.partition_by("turn", as_dict=True).items():
        spans: dict[tuple[int, int], float] = {}
        *left, (seen, _, _) = cached_spans(part, 0)
        for start, stop, weight in left:
            spans[start, stop] = spans.get((start, stop), 0.0) + weight
        merged = [[start, stop, round(share, 3)] for (start, stop), share in sorted(spans.items())]
        kept[str(turn)] = {"seen": seen, "spans": merged}
    return kept


def summary(rows: Mapping[str, Any]) -> str:
    """What the page says above the replies."""
    count = len({run["conversation"] for run in rows["runs"]})
    return f"{len(rows['runs'])} runs of {count} conversations" + (
        f"; {rows['left_out']} more conversations are left out for size" if rows["left_out"] else ""
    )
