"""What an estimate decides: the one place in which intervals become conclusions.

Claims, the report's first paragraph and the statements on recall all come from `decide`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from kvfidelity.analysis.statistics import MIN_DIALOGUES, MIN_DIALOGUES_WITHIN

SUPPORTED, CONTRADICTED, UNDECIDED = "supported", "contradicted", "not decided"
#: Of a claim whose setting no run has.
NOT_TESTED = "not tested here"


def decide(
    direction: str,
    margin: float,
    estimate: Mapping[str, Any],
    *,
    least: int = MIN_DIALOGUES,
    strict: bool | None = None,
) -> tuple[str, str]:
    """ "supported", "contradicted" or "not decided", and why.

    "above" is more than margin, "below" less than minus margin, "within" between the two. It is
    supported if all of the interval is on the claimed side, contradicted if none of it is. The
    interval is `strict_low` to `strict_high`, because losses may be skewed. At margin 0 it is `low`
    to `high` from MIN_DIALOGUES_WITHIN dialogues on, which show on which side a long tail is.

    Args:
        estimate: low, high, strict_low, strict_high, n_dialogues.
        least: dialogues that it takes; at least MIN_DIALOGUES, and MIN_DIALOGUES_WITHIN to support
            "within".
        strict: which interval decides; by default as above.
    """
    dialogues, least = estimate["n_dialogues"], max(least, MIN_DIALOGUES)
    if dialogues < least:
        return UNDECIDED, f"{dialogues} of the {least} dialogues that it takes"
    if strict is None:
        strict = margin != 0 or dialogues < MIN_DIALOGUES_WITHIN
    kind = "strict_" if strict else ""
    low, high = estimate[f"{kind}low"], estimate[f"{kind}high"]
    if low is None or high is None:
        return UNDECIDED, "no interval: too few dialogues differ from the others"
    match direction:
        case "above":
            supported, contradicted = low > margin, high < margin
        case "below":
            supported, contradicted = high < -margin, low > -margin
        case _:
            supported = -margin <= low and high <= margin
            contradicted = low > margin or high < -margin
    if supported and direction == "within" and dialogues < MIN_DIALOGUES_WITHIN:
        return UNDECIDED, f"{dialogues} of the {MIN_DIALOGUES_WITHIN} dialogues that it takes"
    if supported:
        return SUPPORTED, "the whole interval is on the claimed side"
    if contradicted:
        return CONTRADICTED, "the whole interval is on the other side"
    return UNDECIDED, "the interval holds the margin"
