"""A figure's HTML: a page whose script holds the figure, whatever the user's texts are."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import altair as alt
import polars as pl

from kvfidelity.report.theme import save

TITLE = 'Mine: </script><script>alert("no")</script> <!-- &amp; é'


class Scripts(HTMLParser):
    """The texts of a page's scripts, as a browser finds their ends."""

    def __init__(self) -> None:
        super().__init__()
        self.texts: list[str] = []
        self._inside = False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._inside = tag == "script"
        if self._inside:
            self.texts.append("")

    def handle_endtag(self, tag: str) -> None:
        self._inside = False

    def handle_data(self, data: str) -> None:
        if self._inside:
            self.texts[-1] += data


def test_a_text_with_a_tag_ends_no_script(tmp_path: Path) -> None:
    data = pl.DataFrame({"x": [1, 2], "name": ["</script>", "b"]})
    chart = alt.Chart(data, title=TITLE).mark_point().encode(x="x:Q", y="name:N")
    save(chart, tmp_path, "figure")
    scripts = Scripts()
    scripts.feed((tmp_path / "figure.html").read_text(encoding="utf-8"))
    drawing = scripts.texts[-1]
    assert "vegaEmbed('#vega-chart'" in drawing, "its script goes on to its end"
    [spec] = re.findall("^ *const spec = (.*);$", drawing, re.MULTILINE)
    found = json.loads(spec)
    assert found["title"] == TITLE or found["title"]["text"] == TITLE
    [rows] = found["datasets"].values()
    assert [row["name"] for row in rows] == ["</script>", "b"]
