"""The figure of a verdict: by how much each probe's answers deviate from each mode."""

from __future__ import annotations

from pathlib import Path

from kvfidelity.engine_check.answers import AnswerKind
from kvfidelity.engine_check.bookkeeping import FULL
from kvfidelity.engine_check.verdict import FLOOR, LIMIT, Verdict
from kvfidelity.errors import UserError


def write_figure(verdict: Verdict, path: Path) -> None:
    """Write it as SVG.

    Raises:
        UserError: the packages of `kvfidelity[workflow]` are missing.
    """
    try:
        import altair as alt

        from kvfidelity.report.position_modes import PRESENTATIONS
        from kvfidelity.report.theme import svg, with_theme
    except ImportError:
        raise UserError(
            "a figure needs further packages: pip install 'kvfidelity[workflow]', or leave out "
            "--figure"
        ) from None
    from kvfidelity.atomic_files import write_text

    looks = {FULL: ("#999999", "diamond")}
    looks |= {mode.value: (look.colour, look.marker) for mode, look in PRESENTATIONS.items()}
    if verdict.name not in looks:
        looks[verdict.name] = ("#CC79A7", "cross")
    rows = [
        {"probe": probe, "from": name, "deviation": max(means[name], FLOOR / 10)}
        for probe, means in verdict.by_probe.items()
        for name in looks
        if name in means
    ]
    limit = [{"limit": LIMIT * max(verdict.yardstick.mean, FLOOR)}]
    unit = "share of greedy tokens" if verdict.kind is AnswerKind.GREEDY else "nats a token"
    colours, shapes = zip(*looks.values(), strict=True)
    points = (
        alt.Chart(alt.Data(values=rows))
        .mark_point(filled=True, size=70)
        .encode(
            x=alt.X(
                "deviation:Q",
                scale=alt.Scale(type="log"),
                title=f"mean deviation of the engine's answers from each mode, {unit}",
            ),
            y=alt.Y("probe:N", sort=list(verdict.by_probe), title=None),
            color=alt.Color(
                "from:N", scale=alt.Scale(domain=list(looks), range=colours), title=None
            ),
            shape=alt.Shape(
                "from:N", scale=alt.Scale(domain=list(looks), range=shapes), title=None
            ),
        )
    )
    rule = alt.Chart(alt.Data(values=limit)).mark_rule(strokeDash=[4, 3]).encode(x="limit:Q")
    title = f"{verdict.name} fits best; dashed: {LIMIT:g} times the deviation without an eviction"
    chart = (points + rule).properties(width=460, height=alt.Step(24), title=title)
    write_text(path, svg(with_theme(chart), path.stem))
