"""The figure of a verdict: by how much each probe's answers deviate from each mode."""

from __future__ import annotations

from pathlib import Path

from kvfidelity.engine_check.bookkeeping import MODES
from kvfidelity.engine_check.verdict import FLOOR, LIMIT, Verdict
from kvfidelity.errors import UserError


def write_figure(verdict: Verdict, path: Path) -> None:
    """Write it as SVG.

    Raises:
        UserError: the packages of `kvfidelity[workflow]` are missing.
    """
    try:
        import altair as alt

        from kvfidelity.report.theme import svg, with_theme
    except ImportError:
        raise UserError(
            "a figure needs further packages: pip install 'kvfidelity[workflow]', or leave out "
            "--figure"
        ) from None
    from kvfidelity.atomic_files import write_text

    names = [*MODES, *([verdict.name] if verdict.name not in MODES else [])]
    rows = [
        {"probe": probe, "bookkeeping": name, "deviation": max(means[name], FLOOR / 10)}
        for probe, means in verdict.by_probe.items()
        for name in names
        if name in means
    ]
    limit = [{"limit": LIMIT * max(verdict.yardstick.mean, FLOOR)}]
    unit = "share of greedy tokens" if verdict.drift is None and _is_share(verdict) else "nats"
    points = (
        alt.Chart(alt.Data(values=rows))
        .mark_point(filled=True, size=70)
        .encode(
            x=alt.X(
                "deviation:Q",
                scale=alt.Scale(type="log"),
                title=f"mean deviation of the engine's answers, {unit}",
            ),
            y=alt.Y("probe:N", sort=list(verdict.by_probe), title=None),
            color=alt.Color("bookkeeping:N", sort=names, title="from"),
            shape=alt.Shape("bookkeeping:N", sort=names, title="from"),
        )
    )
    rule = alt.Chart(alt.Data(values=limit)).mark_rule(strokeDash=[4, 3]).encode(x="limit:Q")
    chart = (points + rule).properties(
        width=420,
        height=alt.Step(24),
        title=f"{verdict.name}: within {LIMIT:g} times the engine's own deviation (dashed)?",
    )
    write_text(path, svg(with_theme(chart), path.stem))


def _is_share(verdict: Verdict) -> bool:
    from kvfidelity.engine_check.answers import AnswerKind

    return verdict.kind is AnswerKind.GREEDY
