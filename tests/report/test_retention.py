"""The map of what stays cached, against each token looked at alone."""

from __future__ import annotations

from itertools import groupby

import polars as pl
from hypothesis import given
from hypothesis import strategies as st

from kvfidelity.records.columns import EVICTIONS
from kvfidelity.report.retention_figure import BINS, retention_table

TURNS = {
    "model": pl.String,
    "dataset": pl.String,
    "policy": pl.String,
    "kind": pl.String,
    "positions": pl.String,
    "threshold": pl.String,
    "dialogue": pl.String,
    "seed": pl.Int32,
    "run": pl.String,
    "turn": pl.Int32,
    "tokens_seen_end": pl.Int32,
}
LOG = {"run": pl.String} | {
    name: EVICTIONS[name] for name in ("turn", "step", "tokens_seen", "token_spans")
}


def spans_of(tokens: set[int]) -> list[dict[str, int]]:
    """Half-open spans of token indices."""
    runs = [
        [n for _, n in part]
        for _, part in groupby(enumerate(sorted(tokens)), lambda x: x[1] - x[0])
    ]
    return [{"start": run[0], "stop": run[-1] + 1} for run in runs]


@st.composite
def conversations(draw: st.DrawFn) -> tuple[list[int], list[tuple[int, int, list[set[int]]]]]:
    """Tokens seen at the end of each turn; evictions, each with its turn, the tokens seen and what
    its keep sets hold."""
    ends = [draw(st.integers(1, 200))]
    for _ in range(draw(st.integers(0, 3))):
        ends.append(ends[-1] + draw(st.integers(1, 200)))
    evictions = []
    for turn, end in enumerate(ends):
        if draw(st.booleans()):
            seen = draw(st.integers(ends[turn - 1] if turn else 1, end))
            held = st.sets(st.integers(0, seen - 1), min_size=1)
            sets = draw(st.lists(held, min_size=1, max_size=3))
            evictions.append((turn, seen, sets))
    return ends, evictions


@given(conversations())
def test_a_share_is_that_of_the_tokens_that_each_keep_set_holds(
    conversation: tuple[list[int], list[tuple[int, int, list[set[int]]]]],
) -> None:
    ends, evictions = conversation
    run = {name: "x" for name, kind in TURNS.items() if kind is pl.String} | {"seed": 0}
    turns = pl.DataFrame(
        [run | {"turn": n, "tokens_seen_end": end} for n, end in enumerate(ends)], TURNS
    )
    log = pl.DataFrame(
        [
            {
                "run": "x",
                "turn": turn,
                "step": step,
                "tokens_seen": seen,
                "token_spans": spans_of(held),
            }
            for step, (turn, seen, sets) in enumerate(evictions)
            for held in sets
        ],
        LOG,
    )
    found = retention_table(turns, log)
    for turn, end in enumerate(ends):
        past = [(seen, sets) for of, seen, sets in evictions if of <= turn]
        seen, sets = past[-1] if past else (0, [set()])
        rows = found.filter(turn=turn).sort("start")
        assert rows["start"].to_list() == [0, *rows["stop"].to_list()[:-1]]
        assert rows["stop"][-1] == end and rows.height <= BINS
        for start, stop, kept in rows.select("start", "stop", "kept").iter_rows():
            held = [
                sum(token >= seen or token in tokens for tokens in sets) / len(sets)
                for token in range(start, stop)
            ]
            assert abs(kept - sum(held) / len(held)) < 1e-12
    assert set(found["panel"]) == {"x"}
