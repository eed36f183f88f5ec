"""What an estimate decides: the one place in which intervals become conclusions.

Claims, the report's first paragraph and the statements on recall all come from `decide`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from kvfidelity.analysis.statistics import MIN_DIALOGUES, MIN_DIALOGUES_WITHIN, nearly_alike

SUPPORTED, CONTRADICTED, UNDECIDED = "supported", "contradicted", "not decided"
#: Of a claim whose setting no run has.
NOT_TESTED = "not tested here"
#: Share of a margin that is negligible against it, in every single dialogue.
NEGLIGIBLE = 0.1


def decide(
    direction: str,
    margin: float,
    estimate: Mapping[str, Any],
    *,
    least: int = MIN_DIALOGUES,
) -> tuple[str, str]:
    """ "supported", "contradicted" or "not decided", and why.

    "above" is more than margin, "below" less than minus margin, "within" between the two,
    "not_above" anything below margin: it is not worse by more than that. It is
    supported if all of the interval is on the claimed side, contradicted if none of it is. The
    interval is `strict_low` to `strict_high`, because losses may be skewed. At margin 0 it is the
    one that `sign` is of, stricter only towards a long tail, or `low` to `high` where there is no
    sign. Few dialogues that are `nearly_alike` decide nothing.

    That something is small takes MIN_DIALOGUES_WITHIN dialogues, in whatever words: "within" that
    is supported, "not_above" that is supported by what may be above 0, and "above" or "below" that
    is contradicted by what is not beyond the margin on the other side. From that number on, values
    that are all negligible decide by themselves, because only rounding says whether equal results
    have an interval.

    Args:
        estimate: low, high, strict_low, strict_high, n_dialogues and, of a mean, sign, largest and
            core.
        least: dialogues that it takes; at least MIN_DIALOGUES.
    """
    dialogues, least = estimate["n_dialogues"], max(least, MIN_DIALOGUES)
    if dialogues < least:
        return UNDECIDED, f"{dialogues} of the {least} dialogues that it takes"
    kind = "strict_" if margin else ""
    low, high = estimate[f"{kind}low"], estimate[f"{kind}high"]
    largest = estimate.get("largest")
    if largest is not None and largest <= NEGLIGIBLE * margin:
        low, high = -largest, largest
    if low is None or high is None:
        return UNDECIDED, "no interval: too few dialogues differ from the others"
    if not margin and estimate.get("sign") == 0:
        low, high = min(low, 0.0), max(high, 0.0)
    match direction:
        case "above":
            supported, contradicted, small = low > margin, high < margin, high >= -margin
        case "below":
            supported, contradicted, small = high < -margin, low > -margin, low <= margin
        case "not_above":
            supported, contradicted = high < margin, low > margin
            small = supported and high >= 0
        case _:
            supported = -margin <= low and high <= margin
            contradicted, small = low > margin or high < -margin, supported
    of_smallness = small and (contradicted or direction in ("within", "not_above"))
    if of_smallness and dialogues < MIN_DIALOGUES_WITHIN:
        few = f"{dialogues} of the {MIN_DIALOGUES_WITHIN} dialogues that it takes"
        return UNDECIDED, f"{few} to say that something is small"
    nearer = margin if low > 0 else -margin
    edge = {"above": margin, "below": -margin, "not_above": margin}.get(direction, nearer)
    core = estimate.get("core", (None, None))
    if (supported or contradicted) and nearly_alike(dialogues, core, edge):
        return UNDECIDED, "the dialogues are too alike for so few of them to rule out rare others"
    if supported:
        return SUPPORTED, "the whole interval is on the claimed side"
    if contradicted:
        return CONTRADICTED, "the whole interval is on the other side"
    return UNDECIDED, "the interval holds the margin"
