"""The page as its readers have it, driven in headless Chromium."""

from __future__ import annotations

import json
import re
from importlib import resources
from pathlib import Path

import pytest

from kvfidelity.report.figure_registry import FIGURES
from tests.report.browser import browser, chromium, drive
from tests.report.conftest import HOSTILE

pytestmark = pytest.mark.skipif(chromium() is None, reason="no Chromium on this machine")
READ = """
  const figures = [...document.querySelectorAll("figure > div")].filter((one) => one.offsetParent);
  const drawn = figures.map((one) => one.firstElementChild).filter((svg) =>
    svg.getBoundingClientRect().height > 40 && svg.querySelectorAll("path, line, text").length > 8);
  const button = document.querySelector("section[aria-labelledby=claims] button[data-cells]");
  button.click();
  const claimed = document.getElementById("pick-left").value;
  document.querySelector("section[aria-labelledby=cells-head] button[data-cells]").click();
  const left = document.getElementById("side-left");
  left.querySelector("details").open = true;
  await new Promise((done) => setTimeout(done, 200));
  const gone = [...left.querySelectorAll("del")].map((part) => part.textContent).join("");
  const box = left.querySelector(".text");
  return {
    claimed, figures: figures.length, drawn: drawn.length,
    cell: document.getElementById("pick-left").value, focus: document.activeElement.id,
    reply: left.querySelector("blockquote").textContent,
    other: document.getElementById("side-right").querySelector("blockquote").textContent,
    asked: left.querySelectorAll(".questions li").length,
    gone, all: box.textContent, wide: document.documentElement.scrollWidth > innerWidth + 1,
  };
"""


@pytest.mark.parametrize(("width", "dark"), [(1000, False), (390, True)])
def test_figures_are_drawn_and_a_cell_opens(
    page: Path, tmp_path: Path, width: int, dark: bool
) -> None:
    seen = drive(page, READ, tmp_path, width=width, dark=dark)
    assert (seen["errors"], seen["requests"]) == ([], [])
    seen_text = seen["result"]
    assert (
        seen_text["figures"] == seen_text["drawn"] == len(FIGURES) - 1
    )  # one budget: no trade-off
    assert (seen_text["cell"], seen_text["focus"]) == (
        "attention_top, stale (half)",
        "pick-left",
    )
    assert re.fullmatch(r"synthetic reply \d+ of a run that costs 2.0", seen_text["reply"])
    assert seen_text["other"] != seen_text["reply"]
    assert seen_text["claimed"] == "baseline, nothing evicted"
    assert seen_text["asked"] == 12
    assert not seen_text["wide"]


def test_evicted_tokens_are_struck_out(page: Path, tmp_path: Path) -> None:
    """The synthetic log keeps the first four tokens and the last 246 before each eviction."""
    seen_text = drive(page, READ, tmp_path)["result"]
    assert seen_text["all"].startswith("<|im_start|>user\nsynthetic prompt 0 ")
    assert seen_text["all"].endswith("assistant\n")
    assert seen_text["gone"].startswith("r\nsynthetic prompt 0 ")  # after <|im_start|>, u, s, e
    assert "synthetic reference 13" not in seen_text["gone"]


def test_no_accessibility_fault_that_hinders(page: Path, tmp_path: Path) -> None:
    axe = pytest.importorskip("axe_core_python", reason="axe-core-python is not installed")
    source = (resources.files(axe) / "axe.min.js").read_text(encoding="utf-8")
    # Rows and marks beyond these have the same markup as they have, and take most of the time.
    fewer = (
        "for (const body of document.querySelectorAll('tbody'))"
        " while (body.rows.length > 6) body.deleteRow(-1);"
        "for (const group of document.querySelectorAll('svg g'))"
        " while (group.children.length > 8) group.lastElementChild.remove();"
    )
    script = READ[: READ.rindex("return")] + (
        f"{fewer} for (const part of document.querySelectorAll('details')) part.open = true;"
        "const found = await axe.run(document, {resultTypes: ['violations']});"
        "return found.violations.map("
        "(one) => [one.impact, one.id, one.nodes[0].html.slice(0, 300)]);"
    )
    with browser(tmp_path) as reader:
        for width, dark in ((1000, False), (390, True)):
            reader.show(page, width=width, dark=dark)
            reader.run(f"{source};\nwindow.axe = axe")
            found = reader.run(script)
            assert reader.errors == []
            assert [one for one in found if one[0] != "minor"] == []


VISIBLE = "[...document.querySelectorAll('figure > div')].filter((one) => one.offsetParent)"
PARTS = f"""
  return {VISIBLE}.map((one) => {{
    const right = one.firstElementChild.getBoundingClientRect().right;
    return {{
      name: one.parentElement.id, text: one.textContent,
      inside: right <= document.documentElement.clientWidth,
    }};
  }});
"""
#: How many pixels of a picture are not its background, and how many are coloured.
COUNT = """
  const image = new Image();
  image.src = `data:image/png;base64,${png}`;
  await image.decode();
  const canvas = new OffscreenCanvas(image.width, image.height);
  const context = canvas.getContext("2d");
  context.drawImage(image, 0, 0);
  const {data} = context.getImageData(0, 0, image.width, image.height);
  let inked = 0, coloured = 0;
  for (let at = 0; at < data.length; at += 4) {
    const far = [0, 1, 2].map((c) => Math.abs(data[at + c] - data[c]));
    if (Math.max(...far) > 24) inked += 1;
    const [low, high] = [Math.min, Math.max].map((end) => end(...data.slice(at, at + 3)));
    if (high - low > 50) coloured += 1;
  }
  return [inked / (data.length / 4), coloured];
"""


@pytest.mark.parametrize(
    ("width", "dark"), [(1440, False), (1100, True), (390, False), (390, True)]
)
def test_every_figure_shows_its_data(page: Path, tmp_path: Path, width: int, dark: bool) -> None:
    """Pixels of the figures as they are on the screen: something is there, and in colour. The wide
    form and that for phones, by day and by night."""
    with browser(tmp_path) as reader:
        reader.show(page, width=width, dark=dark)
        parts = reader.run(PARTS)
        assert len(parts) == len(FIGURES) - 1  # one budget: no trade-off
        for number, part in enumerate(parts):
            if "Nothing to draw" in part["text"]:
                continue
            png = reader.picture(f"{VISIBLE}[{number}]")
            inked, coloured = reader.run(f"const png = {json.dumps(png)}; {COUNT}")
            assert inked > 0.005, part["name"]
            assert coloured > 40, part["name"]
            assert part["inside"], part["name"]
        assert (reader.errors, reader.requests) == ([], [])


def test_nothing_is_cut_off_at_the_side(page: Path, tmp_path: Path) -> None:
    """Only tables scroll sideways, and their captions stay in view; the drawing of the position
    modes is seen whole."""
    with browser(tmp_path) as reader:
        for width in (1440, 1100, 900, 390, 320):  # the last is 1280 at 400% zoom
            reader.show(page, width=width)
            cut = reader.run(
                "const wide = document.documentElement.scrollWidth > innerWidth;"
                "document.querySelectorAll('details').forEach((one) => { one.open = true; });"
                "const captions = [...document.querySelectorAll('.scroll caption > *')].filter("
                "(one) => one.getBoundingClientRect().right >"
                " one.closest('.scroll').getBoundingClientRect().right + 1);"
                "const still = document.documentElement.scrollWidth > innerWidth;"
                "const drawing = document.querySelector('.drawing').closest('.scroll');"
                "const drawn = drawing.scrollWidth > drawing.clientWidth;"
                "return [wide, still, drawn, captions.map((one) => one.textContent.slice(0, 40))];"
            )
            assert cut == [False, False, False, []], width


def test_print_holds_every_table(page: Path, tmp_path: Path) -> None:
    """Folded tables too: a PDF with tags names its tables."""
    with browser(tmp_path) as reader:
        reader.show(page, width=1100)
        tables = reader.run("return document.querySelectorAll('table').length")
        folded = reader.run("return document.querySelectorAll('details table').length")
        printed = reader.pdf()
        reopened = reader.run("return document.querySelectorAll('details[open]').length")
    assert folded > 10
    assert printed.count(b"/S /Table\n") == tables
    assert reopened == 0


def test_hostile_texts_stay_texts(page: Path, tmp_path: Path) -> None:
    script = """
      document.getElementById("pick-conversation").selectedIndex = 19;
      for (const name of ["conversation", "turn", "left", "right"]) {
        const box = document.getElementById(`pick-${name}`);
        if (name === "left") box.value = "gist, stale (half)";
        if (name === "turn") box.selectedIndex = box.options.length - 1;
        box.dispatchEvent(new Event("change"));
      }
      const quote = document.querySelector("#side-left blockquote");
      return {
        title: document.title, heading: document.querySelector("h1").textContent,
        reply: quote.textContent, owned: typeof owned, images: document.images.length,
        bidi: [quote, document.querySelector("h1")].map((one) => getComputedStyle(one).unicodeBidi),
        text: document.body.innerText,
      };
    """
    seen = drive(page, script, tmp_path)
    result = seen["result"]
    assert (seen["errors"], seen["requests"]) == ([], [])
    assert (result["owned"], result["images"]) == ("undefined", 0)
    assert result["heading"] == f"Synthetic {HOSTILE}"
    assert result["reply"] == HOSTILE
    assert result["bidi"] == ["plaintext", "isolate"]


def test_the_page_runs_its_own_script_alone(page: Path, tmp_path: Path) -> None:
    script = """
      const added = document.createElement("script");
      added.textContent = "window.owned = 1";
      document.body.append(added);
      const image = new Image();
      image.src = "https://example.org/x.png";
      await new Promise((done) => setTimeout(done, 100));
      return [typeof owned, document.getElementById("chooser").hidden];
    """
    seen = drive(page, script, tmp_path)
    assert seen["result"] == ["undefined", False]
    assert len(seen["errors"]) == 2  # both were refused
    assert all("Content Security Policy" in error for error in seen["errors"])


def test_a_view_has_an_address_and_a_way_back(page: Path, tmp_path: Path) -> None:
    shown = (
        "return ['conversation', 'turn', 'left', 'right']"
        ".map((name) => document.getElementById(`pick-${name}`).value)"
    )
    buttons = "document.querySelectorAll('section[aria-labelledby=contrasts] button[data-cells]')"
    button = f"[...{buttons}].at(-1)"
    with browser(tmp_path) as reader:
        reader.show(page, width=1000)
        first = reader.run(shown)
        reader.run(f"{button}.closest('details').open = true; {button}.click()")
        opened, address = reader.run(shown), reader.run("return location.hash")
        assert opened != first and address.startswith("#view?")
        pair = reader.run(f"return JSON.parse({button}.dataset.cells)")
        sides = [f"{one['policy']}, {one['positions']} ({one['threshold']})" for one in pair]
        assert opened[2:] == sides
        back = "const seen = new Promise((done) => addEventListener('popstate', done));"
        reader.run(f"{back} document.querySelector('#return button').click(); await seen;")
        assert reader.run(shown) == first
        assert reader.run(f"return document.activeElement === {button}")
        reader.call("Page.navigate", url="about:blank")
        reader.wait_for("Page.loadEventFired")
        reader.call("Page.navigate", url=page.as_uri() + address)
        reader.wait_for("Page.loadEventFired")
        assert reader.run(shown) == opened


def test_both_panes_scroll_together_and_long_messages_are_folded(
    page: Path, tmp_path: Path
) -> None:
    script = """
      const wait = () => new Promise((done) => setTimeout(done, 200));
      document.querySelector("#side-left .cached").open = true;
      await wait();
      const [left, right] = document.querySelectorAll(".sides .text");
      left.scrollTop = 60;
      await wait();
      const scrolled = [left.scrollTop, right.scrollTop];
      return {scrolled, status: document.getElementById("shown").textContent,
        role: document.getElementById("shown").getAttribute("role")};
    """
    result = drive(page, script, tmp_path)["result"]
    assert result["scrolled"][0] == result["scrolled"][1]
    assert result["role"] == "status"
    assert result["status"].startswith("Turn ")


def test_tables_sort_with_one_tab_stop(page: Path, tmp_path: Path) -> None:
    script = """
      const table = document.querySelector("section[aria-labelledby=cells-head] > .scroll > table");
      const names = [...table.tHead.rows[0].cells].map((one) => one.textContent);
      const head = names.indexOf("excess NLL");
      const button = table.tHead.rows[0].cells[head].querySelector("button");
      const values = () => [...table.tBodies[0].rows].map((row) =>
        parseFloat(row.cells[head].textContent.replace("\u2212", "-")));
      button.click();
      const up = values();
      button.click();
      const down = values();
      return {up, down, sort: table.tHead.rows[0].cells[head].getAttribute("aria-sort"),
        stops: [...table.querySelectorAll("button")].filter((one) => one.tabIndex === 0).length,
        next: (() => {
          const [first, second] = table.tBodies[0].querySelectorAll("button");
          const key = new KeyboardEvent("keydown", {key: "ArrowDown", bubbles: true});
          first.dispatchEvent(key);
          return document.activeElement === second && second.tabIndex === 0;
        })()};
    """
    result = drive(page, script, tmp_path)["result"]
    assert result["up"] == sorted(result["up"]) and len(set(result["up"])) > 3
    assert result["down"] == sorted(result["down"], reverse=True)
    # One for the table's head and one for its buttons.
    assert (result["sort"], result["stops"], result["next"]) == ("descending", 2, True)
