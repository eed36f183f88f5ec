"""The page as its readers have it: written by the scripts, driven in headless Chromium."""

from __future__ import annotations

import html
import json
import re
import subprocess
import sys
from importlib import resources
from pathlib import Path

import polars as pl
import pytest
import yaml

from kvfidelity.pipeline.invocation import write_invocation
from kvfidelity.pipeline.rule_params import grid_settings, report_settings, table_settings
from kvfidelity.records.artifacts import read_metadata, read_parquet, write_parquet
from kvfidelity.records.grid import run_keys
from kvfidelity.report.figure_registry import FIGURES
from tests.analysis.synthetic import settings, write
from tests.analysis.test_jobs import benchmark, noted
from tests.analysis.test_reliability import judge_test
from tests.models.tiny import tiny_tokenizer
from tests.report.browser import browser, chromium, drive
from tests.shared import made_once
from tests.waiting import LIMIT_S

ROOT = Path(__file__).parents[2]
#: Text that would be markup, would close the page's script, and turns what follows around.
HOSTILE = "</script><img src=x onerror='owned=1'><script>owned=1</script>\u202eabc"
COSTS = {("attention_top", "stale"): 2.0, ("sliding_window_gist", "stale"): 0.4}
in_browser = pytest.mark.skipif(chromium() is None, reason="no Chromium on this machine")


def hostile_reply(file: Path) -> None:
    """Let the run's last own reply be hostile, and the run be of another version of torch."""
    rows, notes = read_parquet(file, kind="turns"), read_metadata(file)
    last = pl.col("turn") == pl.col("turn").max()
    rows = rows.with_columns(reply=pl.when(last).then(pl.lit(HOSTILE)).otherwise("reply"))
    kept = {name: text for name, text in notes.items() if name not in ("kind", "digest")}
    write_parquet(rows, file, kind="turns", metadata=kept | {"version.torch": "1.13.1"})


def script(name: str, *arguments: object) -> None:
    command = [sys.executable, str(ROOT / "workflow/scripts" / name), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=LIMIT_S)
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A page with its figures and tables; read only."""
    return made_once(tmp_path_factory, "page", make_page) / "results/report.html"


def make_page(folder: Path) -> None:
    results, tables = folder / "results", folder / "results/tables"
    chosen = settings(20, title=f"Synthetic {HOSTILE}")
    chosen["models"]["synthetic"]["licence"] = HOSTILE
    write(results, chosen, COSTS, probes=4)
    hostile_reply(results / "generate/synthetic/made/gist/stale/half/0/019/turns.parquet")
    write_invocation(results, chosen, ["/usr/bin/snakemake", "--cores", "2", HOSTILE], ROOT)
    benchmark(results, "aggregate", wall=12.34, cpu=1234.5, mib=100)
    noted(results, f"generate/{run_keys(chosen)[0]}/turns", 3.5, batch_size=2)
    tiny_tokenizer().save_pretrained(results / "dialogues/synthetic/made/tokenizer")
    whole = {
        "tables": table_settings(chosen, results),
        "page": report_settings(chosen),
        "report": chosen["report"],
    }
    seen_text = {name: json.dumps(value) for name, value in whole.items()}
    script("aggregate.py", "--settings", seen_text["tables"], "--results", results, "--out", tables)
    judging = json.dumps(grid_settings(chosen))
    tested = results / "reliability/formula/synthetic/made/judge_test.parquet"
    write_parquet(
        judge_test("formula", lambda kind, item, _: 8 if kind == "good" else 2),
        tested,
        kind="judge_test",
    )
    script(
        "judge_reliability.py", "--settings", judging, "--results", results, "--judge-tests", tested
    )
    claims = ROOT / "config/claims.yaml"
    script("claims.py", "--settings", seen_text["report"], "--tables", tables, "--claims", claims)
    script("paper_tables.py", "--tables", tables)
    script("figures.py", "--tables", tables, "--out", results / "figures")
    out = results / "report.html"
    script("report.py", "--settings", seen_text["page"], "--results", results, "--out", out)


@pytest.fixture(scope="module")
def text(page: Path) -> str:
    return page.read_text(encoding="utf-8")


def test_it_is_one_file_that_asks_nothing_of_a_network(page: Path, text: str) -> None:
    assert page.stat().st_size < 15e6
    without_names = re.sub(r'xmlns(:\w+)?="[^"]*"', "", text)
    assert not re.search(r"(src|href)\s*=\s*[\"']?(https?:)?//", without_names)
    assert "@import" not in text
    assert "url(http" not in text


def words(text: str, start: str, end: str) -> str:
    """What a person reads of a part of the page, figures aside."""
    part = text[text.index(start) : text.index(end)]
    bare = re.sub(r"<(svg|script|style)\b.*?</\1>", " ", part, flags=re.DOTALL)
    return html.unescape(re.sub(r"\s+", " ", re.sub("<[^>]+>", " ", bare)))


def test_the_first_words_answer(text: str) -> None:
    answer = words(text, 'id="answer"', 'id="contents"')
    assert "attention_top fails because of positions" in answer
    assert "synthetic numbers" in text[: text.index('id="answer"')]


def test_the_ranking_names_what_loses_least(page: Path, text: str) -> None:
    ranking = pl.read_csv(page.parent / "tables/ranking.csv")
    best = ranking.filter(rank=1).row(0, named=True)
    answer = words(text, 'id="answer"', 'id="contents"')
    assert f"At {best['budget_tokens']} cached tokens, " in answer
    assert f"{best['policy']}, {best['positions']} loses least" in answer
    assert f"saves {best['bytes_saved_share']:.0%} of the baseline’s cache" in answer
    shown = re.findall(
        r"(attention_top|gist|streaming_llm) (stale|original|rerotated) [+−0]", answer
    )
    assert shown == list(zip(ranking["policy"], ranking["positions"], strict=True))


def test_a_reader_who_asks_for_another_budget_is_told_the_nearest(page: Path, text: str) -> None:
    budgets = pl.read_csv(page.parent / "tables/ranking.csv")["budget_tokens"].drop_nulls().unique()
    [budget] = budgets
    assert budget != 512
    answer = words(text, 'id="answer"', 'id="contents"')
    assert f"Budgets that were run: {budget:,} slots. No run holds 512 slots; nearest: " in answer
    assert f"nearest: {budget:,}." in answer
    assert 'make run CONFIG="config/config.yaml slots.yaml"' in answer
    [entry] = re.findall(r"Write (thresholds: .*) to a file such as slots", answer)
    chosen = yaml.safe_load(entry)["thresholds"]
    assert chosen["slots512"]["target"] == "512tok"
    assert "slots512" in settings(20, thresholds=chosen)["thresholds"], "it is accepted"


def test_slots_and_speed_of_the_ranking_are_the_tables(page: Path, text: str) -> None:
    """Where nothing was timed, the page says why and how to time it."""
    ranking = pl.read_csv(page.parent / "tables/ranking.csv")
    answer = words(text, 'id="answer"', 'id="contents"')
    for row in ranking.to_dicts():
        shown = f"{row['cached_slots']:,.0f} {row['bytes_saved_share']:.0%}"
        assert f" {shown} " in answer
    untimed = ranking["n_timed"].sum() == 0
    assert ("Why tokens per second were not timed" in answer) == untimed
    assert ("not timed" in answer) == (ranking["n_timed"].min() == 0)


def test_the_first_lines_name_the_machine_and_the_day(page: Path, text: str) -> None:
    environments = pl.read_csv(page.parent / "tables/environments.csv")
    head = words(text, "<header>", 'id="answer"')
    for name in environments["hardware"].drop_nulls().unique():
        assert name in head
    for moment in environments["last_made"].drop_nulls().unique():
        assert moment[:10] in head


def test_runs_of_more_than_one_environment_are_warned_of(text: str) -> None:
    part = words(text, 'id="environments"', 'id="cells-head"')
    assert "Warning: the runs of synthetic were made in more than one environment" in part
    assert part.count("torch 1.13.1") == 1


def test_terms_are_defined_with_a_drawing(text: str) -> None:
    part = words(text, 'id="terms"', 'id="causes"')
    assert "stale 0 1 evicted evicted evicted 5 6 7 5" in part
    assert "original 0 1 evicted evicted evicted 5 6 7 8" in part
    assert "rerotated 0 1 evicted evicted evicted 2 3 4 5" in part
    assert 'class="n late">5<' in text and 'class="n late">2<' not in text
    assert "Keeps a few first slots, the attention sinks, and the last ones" in part


def test_what_was_run_is_told(page: Path, text: str) -> None:
    part = words(text, 'id="run"', 'id="cells-head"')
    turns = pl.read_parquet(page.parent / "tables/turns.parquet")
    late = turns.filter(pl.col("kind") != "baseline", "after_eviction").height
    assert f"of which {late} turns after an eviction" in part
    assert "snakemake --cores 2" in part
    assert "KV Fidelity 0.1.0" in part
    base = pl.read_csv(page.parent / "tables/baselines.csv").row(0, named=True)
    assert f"{base['mean']:.2f} [" in part and "perplexity" in part
    limit = turns.drop_nulls("threshold_tokens").row(0, named=True)
    size = limit["threshold_tokens"] * limit["token_bytes"] / 1e6
    assert f"half: at {limit['threshold_tokens']} tokens ({size:.2f} MB)" in part
    assert "kind: attention_top" in part


def test_depths_and_policies_have_different_names(text: str) -> None:
    """`gist` is a policy; what it keeps is the beginning."""
    part = words(text, 'id="recall"', 'id="cache"')
    assert re.search(r"\bearly\b", part)
    assert not re.search(r"\bgist (stale|rerotated|original) gist\b", part)
    assert "re-rotated" not in text


def test_both_sides_of_a_contrast_open(text: str) -> None:
    part = text[text.index('id="contrasts"') : text.index('id="verdicts"')]
    pairs = [
        json.loads(html.unescape(found)) for found in re.findall(r"data-cells='([^']*)'", part)
    ]
    assert pairs and all(len(pair) == 2 and pair[0] != pair[1] for pair in pairs)


def test_every_table_has_its_csv(page: Path, text: str) -> None:
    files = re.findall(r'href="((?:tables|figures)/[^"]+\.csv)"', text)
    assert len(set(files)) > 20
    for file in files:
        assert (page.parent / file).is_file(), file


def test_it_says_what_each_policy_forgets(text: str) -> None:
    part = re.sub(r"\s+", " ", text[text.index('id="recall"') : text.index('id="cache"')])
    gist = part[part.index("<strong>gist</strong>, whatever the positions") :]
    gist = re.sub("<[^>]+>", "", gist[: gist.index("</li>")])
    assert re.search(r"keeps the beginning \((\d+%) against \1\)", gist)
    assert re.search(r"forgets the middle \(\d\d% against \d\d%\), the latest", gist)
    assert "<strong>attention_top</strong>, original and rerotated" in part


def test_missing_verdicts_are_counted(text: str) -> None:
    found = re.search(r"formula: (\d+) verdicts missing, failed. By turn: (.+)\.</p>", text)
    assert found
    turns = re.findall(r"turn (\d+): (\d+) of (\d+)", found[2])
    assert [int(turn) for turn, _, _ in turns] == [4, 9, 14]
    assert all(missing == replies for _, missing, replies in turns)
    assert sum(int(missing) for _, missing, _ in turns) == int(found[1])
    # Every cell misses the same turns, so there is nothing to warn of.
    assert "Missing verdicts of" not in text


def test_the_reliability_of_judges_is_shown(text: str) -> None:
    section = re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", text[text.index('id="judges"') :]))
    assert "formula shuffle 1.00 [0.83, 1.00] 20 0" in section
    assert "formula other dialogue 1.00" in section
    assert "Words to the judge inside a reply" in section


def test_seconds_and_memory_of_the_jobs_are_shown(text: str) -> None:
    section = text[text.index('id="jobs"') : text.index('id="limits"')]
    seen_text = re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", section))
    assert "Runs computed together with others share their seconds: 1 of the jobs" in seen_text
    assert "aggregate its own processes 1 12.3 12.3 12.3 1,234 105" in seen_text
    assert "generate the model’s process 1 3.50 3.50 3.50 (shared) 7.00 (shared) 3.00" in seen_text


def test_figures_and_tables_for_papers(page: Path) -> None:
    results = page.parent
    for name in [figure.name for figure in FIGURES]:
        assert (results / f"figures/{name}.png").read_bytes().startswith(b"\x89PNG")
        alone = (results / f"figures/{name}.html").read_text()
        assert "vegaEmbed" in alone
        assert not re.search(r"<script[^>]+src=", alone)
    assert (results / "tables/policies.md").read_text().startswith("| model | dataset |")
    latex = (results / "tables/claims.tex").read_text()
    assert r"\toprule" in latex
    assert r"streaming\_llm" in latex
    assert "takes the cache past the threshold by more than 5\\%" in latex


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


@in_browser
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


@in_browser
def test_evicted_tokens_are_struck_out(page: Path, tmp_path: Path) -> None:
    """The synthetic log keeps the first four tokens and the last 246 before each eviction."""
    seen_text = drive(page, READ, tmp_path)["result"]
    assert seen_text["all"].startswith("<|im_start|>user\nsynthetic prompt 0 ")
    assert seen_text["all"].endswith("assistant\n")
    assert seen_text["gone"].startswith("r\nsynthetic prompt 0 ")  # after <|im_start|>, u, s, e
    assert "synthetic reference 13" not in seen_text["gone"]


@in_browser
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


@in_browser
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


@in_browser
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


@in_browser
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


@in_browser
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


@in_browser
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


@in_browser
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


@in_browser
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


@in_browser
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
