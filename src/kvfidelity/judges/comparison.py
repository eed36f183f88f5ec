"""What a comparison of two replies is."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import polars as pl

from kvfidelity.judges.verdict import Judgement
from kvfidelity.records.columns import VERDICTS

BETTER, WORSE, TIE = "better", "worse", "tie"
#: The status of a comparison of equal texts, which are not sent to a model.
SAME = "same"
#: What a comparison gives in the place of a score.
CHOICES = ("outcome", "choice", "choice_swapped")
#: Columns of comparisons, as those of verdicts.
SCHEMA: dict[str, Any] = {
    column: dtype
    for name, kind in VERDICTS.items()
    for column, dtype in (
        ((choice, pl.String) for choice in CHOICES) if name == "score" else ((name, kind),)
    )
}
#: Columns of comparisons of runs with their baselines.
RUN_COMPARISONS: dict[str, Any] = {"run": pl.String, **SCHEMA}
#: Columns of comparisons of a good reply with its corruption of one `kind`.
CORRUPTION_COMPARISONS: dict[str, Any] = {
    "item": pl.Int32,
    "dialogue": pl.String,
    "kind": pl.String,
    **SCHEMA,
}

#: A turn with its reply, the other reply, and the turns before.
Pair = tuple[Mapping[str, Any], str, Sequence[Mapping[str, Any]]]


@dataclass(frozen=True, kw_only=True)
class Comparison(Judgement):
    """One reply against another.

    choice, choice_swapped: "first", "second" or "tie", with the reply shown first, then second.
    outcome: "better" or "worse" if both orders agree, else "tie"; None unless `status` is "ok" or
    "same" (equal texts, which are not sent to a model). request: keys of both requests.
    """

    outcome: str | None
    choice: str | None
    choice_swapped: str | None


def comparisons_frame(comparisons: Mapping[str, Iterable[Comparison]]) -> pl.DataFrame:
    """Comparisons by run as a table with the columns of `RUN_COMPARISONS`."""
    rows = [{"run": run} | asdict(one) for run, found in comparisons.items() for one in found]
    return pl.DataFrame(rows, RUN_COMPARISONS)
