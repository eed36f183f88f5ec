"""A page of synthetic numbers, written by the scripts once for all tests."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import polars as pl
import pytest

from kvfidelity.pipeline.invocation import write_invocation
from kvfidelity.pipeline.rule_params import grid_settings, report_settings, table_settings
from kvfidelity.records.artifacts import read_metadata, read_parquet, write_parquet
from kvfidelity.records.grid import run_keys
from tests.analysis.synthetic import settings, write
from tests.analysis.test_jobs import benchmark, noted
from tests.analysis.test_reliability import judge_test
from tests.models.tiny import tiny_tokenizer
from tests.shared import made_once
from tests.waiting import LIMIT_S

ROOT = Path(__file__).parents[2]
#: Text that would be markup, would close the page's script, and turns what follows around.
HOSTILE = "</script><img src=x onerror='owned=1'><script>owned=1</script>\u202eabc"
COSTS = {("attention_top", "stale"): 2.0, ("sliding_window_gist", "stale"): 0.4}


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


@pytest.fixture(scope="session")
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


@pytest.fixture(scope="session")
def text(page: Path) -> str:
    return page.read_text(encoding="utf-8")
