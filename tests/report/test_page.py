"""The page as its readers have it: written by the scripts, driven in headless Chromium."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from importlib import resources
from pathlib import Path
from typing import Any

import pytest

from kvfidelity.pipeline.rule_params import grid_settings, report_settings, table_settings
from kvfidelity.records.artifacts import write_parquet
from kvfidelity.records.grid import run_keys
from kvfidelity.report.figure_registry import FIGURES
from tests.analysis.synthetic import settings, write
from tests.analysis.test_jobs import benchmark, noted
from tests.analysis.test_reliability import judge_test
from tests.models.tiny import tiny_tokenizer
from tests.report.browser import chromium, drive
from tests.waiting import LIMIT_S

ROOT = Path(__file__).parents[2]
COSTS = {("attention_top", "stale"): 2.0, ("sliding_window_gist", "stale"): 0.4}
in_browser = pytest.mark.skipif(chromium() is None, reason="no Chromium on this machine")


def script(name: str, *arguments: object) -> None:
    command = [sys.executable, str(ROOT / "workflow/scripts" / name), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=LIMIT_S)
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("page")
    results, tables = folder / "results", folder / "results/tables"
    chosen = settings(20)
    write(results, chosen, COSTS, probes=4)
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
    out = folder / "results/report.html"
    script("report.py", "--settings", seen_text["page"], "--results", results, "--out", out)
    return out


@pytest.fixture(scope="module")
def text(page: Path) -> str:
    return page.read_text(encoding="utf-8")


def test_it_is_one_file_that_asks_nothing_of_a_network(page: Path, text: str) -> None:
    assert page.stat().st_size < 15e6
    without_names = re.sub(r'xmlns(:\w+)?="[^"]*"', "", text)
    assert not re.search(r"(src|href)\s*=\s*[\"']?(https?:)?//", without_names)
    assert "@import" not in text
    assert "url(http" not in text


def test_the_first_words_answer(text: str) -> None:
    answer = re.sub(r"\s+", " ", text[: text.index('id="claims"')])
    assert "<strong>attention_top</strong> fails <strong>because of positions</strong>" in answer
    assert "synthetic numbers" in answer


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
  const figures = [...document.querySelectorAll("figure svg")];
  const drawn = figures.filter((svg) =>
    svg.getBoundingClientRect().height > 40 && svg.querySelectorAll("path, line, text").length > 8);
  const button = document.querySelector("section[aria-labelledby=claims] button[data-cell]");
  button.click();
  const claimed = document.getElementById("pick-left").value;
  document.querySelector("section[aria-labelledby=cells-head] button[data-cell]").click();
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
@pytest.mark.parametrize(("width", "dark"), [(1000, False), (500, True)])
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
    assert seen_text["reply"] == "synthetic reply 14 of a run that costs 2.0"
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
def test_no_serious_accessibility_fault(page: Path, tmp_path: Path) -> None:
    axe = pytest.importorskip("axe_core_python", reason="axe-core-python is not installed")
    source = (resources.files(axe) / "axe.min.js").read_text(encoding="utf-8")
    for width, dark in ((1000, False), (500, True)):
        run = f"{source};\n{READ.replace('return', 'const result =')}" + (
            "const found = await axe.run(document, {resultTypes: ['violations']});"
            "return found.violations.map("
            "(one) => [one.impact, one.id, one.nodes[0].html.slice(0, 300)]);"
        )
        seen = drive(page, run, tmp_path, width=width, dark=dark)
        assert seen["errors"] == []
        serious: list[Any] = [one for one in seen["result"] if one[0] in ("serious", "critical")]
        assert serious == []
