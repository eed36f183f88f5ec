"""A dot per dialogue in figures of few: an interval of few dialogues says less than they do."""

from __future__ import annotations

from collections.abc import Sequence

import altair as alt
import polars as pl

#: Dialogues up to which each is drawn.
FEW_DIALOGUES = 20
#: The column of a dialogue's own value; it is missing in rows of means, which have all others.
ONE = "one"


def with_dots(means: pl.DataFrame, each: pl.DataFrame, keys: Sequence[str]) -> pl.DataFrame:
    """The rows of means, and below them one row per dialogue where a mean is of few.

    Args:
        means: one row per value of `keys`.
        each: `keys` and ONE, one row per dialogue of a mean.
    """
    few = each.group_by(keys).len().filter(pl.col("len") <= FEW_DIALOGUES).drop("len")
    dots = each.select(*keys, pl.col(ONE).cast(pl.Float64)).join(few, on=keys, how="semi")
    dots = dots.join(means, on=keys, how="inner")
    hidden = [
        pl.lit(None, dtype).alias(name)
        for name, dtype in means.schema.items()
        if name in ("mean", "low", "high")
    ]
    return pl.concat([means, dots.with_columns(hidden)], how="diagonal")


def dots(base: alt.Chart, channel: alt.X | alt.Y) -> alt.Chart:
    """The dots of `with_dots`'s rows along `channel`, an encoding of ONE."""
    drawn = base.transform_filter(f"isValid(datum.{ONE})")
    mark = drawn.mark_point(filled=True, size=14, opacity=0.45, shape="circle", aria=False)
    axis = {"x": channel} if isinstance(channel, alt.X) else {"y": channel}
    return mark.encode(**axis)


def of_means(base: alt.Chart) -> alt.Chart:
    """The rows of means."""
    return base.transform_filter(f"!isValid(datum.{ONE})")


def with_interval(base: alt.Chart) -> alt.Chart:
    """The rows of means that have an interval."""
    return base.transform_filter("isValid(datum.low)")
