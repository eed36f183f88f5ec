"""How long conversations are: counted while they are read, drawn from the manifest."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from kvfidelity.dialogues.pool import Turn

if TYPE_CHECKING:
    import altair


class LengthCounts:
    """Histograms of all conversations with at least one turn, in bins that double."""

    def __init__(self) -> None:
        self._turns: Counter[int] = Counter()
        self._characters: Counter[int] = Counter()

    def add(self, turns: Sequence[Turn]) -> None:
        """Count one conversation."""
        characters = sum(len(turn.user) + len(turn.assistant) for turn in turns)
        self._turns[len(turns).bit_length()] += 1
        self._characters[characters.bit_length()] += 1

    def bins(self) -> dict[str, list[dict[str, int]]]:
        """The manifest's bins: `from` and `below` bound a bin, `count` says how many are in it."""
        return {"turns": _bins(self._turns), "characters": _bins(self._characters)}


def _bins(counts: Counter[int]) -> list[dict[str, int]]:
    return [
        {"from": 1 << (bits - 1), "below": 1 << bits, "count": counts[bits]}
        for bits in sorted(counts)
        if bits
    ]


def length_chart(manifest: Mapping[str, Any], title: str) -> altair.HConcatChart:
    """Turns and characters of all conversations read, and tokens of those kept.

    Args:
        manifest: as `extract` returns it.
        title: the data set's name.
    """
    import altair as alt

    def histogram(what: str) -> Any:
        bins = [bin_ | {"least": f"{bin_['from']:,}"} for bin_ in manifest["lengths"][what]]
        return (
            alt.Chart(alt.Data(values=bins), width=220, height=180)
            .mark_bar()
            .encode(
                alt.X("least:O", sort=None, title=f"{what} at least (all that were read)"),
                alt.Y("count:Q", title="conversations"),
                tooltip=["from:Q", "below:Q", "count:Q"],
            )
        )

    kept = [{"tokens": tokens} for tokens in manifest["tokens"]]
    tokens = (
        alt.Chart(alt.Data(values=kept), width=220, height=180)
        .mark_bar()
        .encode(
            alt.X("tokens:Q", bin=alt.Bin(maxbins=20), title="tokens (kept)"),
            alt.Y("count():Q", title="conversations"),
        )
    )
    return alt.hconcat(histogram("turns"), histogram("characters"), tokens, title=title)
