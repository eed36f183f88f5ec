"""What is published of a run is a part of its tables, without a word of a dialogue."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import polars as pl
import pytest

from kvfidelity.analysis.columns import RECALL_TEXTS, TABLES, TURN_TEXTS
from kvfidelity.analysis.table_names import LARGE_TABLES
from kvfidelity.errors import UserError
from kvfidelity.findings.export import (
    MOST_BYTES,
    export_run,
    first_training_started,
    refuse_large,
    typed_command,
)
from kvfidelity.findings.exported import (
    ALWAYS,
    EXPORTED,
    NAMES,
    OF_QUESTION,
    exported_schema,
    published,
)
from kvfidelity.findings.plan import SMOLLM2
from kvfidelity.findings.timing import timing
from kvfidelity.records.artifacts import read_parquet
from kvfidelity.records.questions import questions

#: Text columns that say something; the rest are names.
TALKING = {*TURN_TEXTS, *RECALL_TEXTS, "statement", "reason", "source", "rubric", "run"}


def test_no_column_of_free_text_can_be_published() -> None:
    assert not NAMES & TALKING
    assert not {*EXPORTED} & {*LARGE_TABLES}
    for name in EXPORTED:
        texts = {key for key, dtype in exported_schema(name).items() if dtype == pl.String}
        assert texts <= NAMES, name
        # A list or a struct could hold texts too.
        assert all(not dtype.is_nested() for dtype in exported_schema(name).values())


def test_a_new_text_column_of_a_table_is_left_out_until_it_is_named() -> None:
    texts = {
        f"{name}.{info.name}"
        for name in EXPORTED
        if name in TABLES
        for info in TABLES[name]
        if info.dtype == pl.String and info.name not in NAMES
    }
    assert {text.split(".")[1] for text in texts} <= TALKING | {"judge_model", "keep_sets"}


@pytest.mark.parametrize("text", ["Hello!\nHow are you?", "say “yes”", "a" * 301, 'the "gist"'])
def test_a_name_that_is_a_text_is_refused(finished: Path, text: str) -> None:
    file = finished / "paper_reference/tables/policies.parquet"
    rows = read_parquet(file, kind="policies").with_columns(policy=pl.lit(text))
    with pytest.raises(UserError, match=r"table policies, column policy: .* is not a name"):
        published("policies", rows)


def test_no_published_file_holds_a_text_of_a_run(finished: Path, docs: Path) -> None:
    texts = set()
    for file in (finished / "equal_budgets/generate").rglob("turns.parquet"):
        turns = pl.read_parquet(file)
        asked = questions(turns.lazy()).collect()
        for found in (turns.select(TURN_TEXTS), asked.select(RECALL_TEXTS)):
            found = found.select(pl.col(pl.String))
            texts |= {text for column in found for text in column.drop_nulls() if len(text) > 3}
    assert len(texts) > 10
    shown = "".join(file.read_text("utf-8") for file in docs.rglob("*.csv"))
    assert not [text for text in texts if text in shown]


def test_a_published_table_is_the_runs_own(finished: Path, docs: Path) -> None:
    folder = docs / "equal_budgets" / SMOLLM2
    names = {file.stem for file in folder.glob("*.parquet")}
    assert names <= {*ALWAYS, *OF_QUESTION["budgets"]} and {"policies", "leaderboard"} <= names
    assert names == {file.stem for file in folder.glob("*.csv")}
    for name in names:
        own = read_parquet(finished / f"equal_budgets/tables/{name}.parquet", kind=name)
        shown = pl.read_parquet(folder / f"{name}.parquet")
        kept = own.filter(pl.col("model").fill_null(SMOLLM2) == SMOLLM2)
        assert shown.equals(kept.select(*exported_schema(name))), name
        assert pl.read_csv(folder / f"{name}.csv").height == shown.height


def test_a_run_on_a_shared_machine_says_so(finished: Path, docs: Path, tmp_path: Path) -> None:
    facts = json.loads((docs / "equal_budgets" / SMOLLM2 / "run.json").read_text("utf-8"))
    assert facts["shared"] is False
    script = Path(__file__).parents[2] / "workflow/scripts/export_finding.py"
    asked = ["--finding", "equal_budgets", "--docs", str(tmp_path), "--shared"]
    subprocess.run([sys.executable, script, finished / "equal_budgets", *asked], check=True)
    facts = json.loads((tmp_path / "equal_budgets" / SMOLLM2 / "run.json").read_text("utf-8"))
    assert facts["shared"] is True


def test_the_facts_name_no_place_of_the_machine(finished: Path, docs: Path) -> None:
    facts = json.loads((docs / "equal_budgets" / SMOLLM2 / "run.json").read_text("utf-8"))
    assert facts["command"] == "snakemake --cores 1"
    assert facts["dialogues"] == {"made": 2} and facts["runs"] == 2 * 64
    assert facts["label"] == "synthetic numbers" and facts["model"] == SMOLLM2
    assert str(finished) not in json.dumps(facts)


@pytest.mark.parametrize(
    ("recorded", "typed"),
    [
        (None, "not recorded"),
        ("snakemake --cores 2", "snakemake --cores 2"),
        ("__main__.py --directory /a/b --cores 2", "snakemake --cores 2"),
        (
            "snakemake -d /a/b --configfile /a/x.yaml c/y.yaml",
            "snakemake --configfile x.yaml c/y.yaml",
        ),
    ],
)
def test_a_command_is_as_another_machine_would_type_it(recorded: str | None, typed: str) -> None:
    assert typed_command(recorded) == typed


def test_a_run_that_is_not_finished_is_refused(finished: Path, tmp_path: Path) -> None:
    shutil.copytree(finished / "paper_reference/tables", tmp_path / "run/tables")
    (tmp_path / "run/tables/claims.parquet").unlink()
    with pytest.raises(UserError, match="there is no table claims; finish the run"):
        export_run(tmp_path / "run", "paper_reference", tmp_path / "docs")


def test_more_than_five_megabytes_are_refused(tmp_path: Path) -> None:
    (tmp_path / "one.csv").write_bytes(b"0" * MOST_BYTES)
    refuse_large(tmp_path)
    (tmp_path / "two.csv").write_bytes(b"0")
    with pytest.raises(UserError, match=r"5,000,001 bytes are published, more than 5,000,000"):
        refuse_large(tmp_path)


def turn(policy: str, number: int, seconds: float, **changes: object) -> dict[str, object]:
    row: dict[str, object] = {
        "model": "m",
        "dataset": "d",
        "policy": policy,
        "positions": "rerotated",
        "threshold": "t",
        "dialogue": "000",
        "seed": 0,
        "turn": number,
        "concurrency": 1,
        "shared_prefix": False,
        "ttft_s": seconds,
        "prefill_s": seconds,
        "tpot_s": 0.01,
        "eviction_s": 0.0,
        "scoring_s": 0.0,
        "evictions": 0,
        "cache_bytes_end": 100,
        "peak_device_bytes": 1000,
    }
    return row | changes


def test_times_are_of_single_runs_from_the_first_eviction_of_a_dialogue_on() -> None:
    rows = [
        turn("baseline", 0, 9.0),
        turn("baseline", 1, 0.4),
        turn("baseline", 2, 0.2),
        turn("h2o", 0, 9.0),
        turn("h2o", 1, 0.3, evictions=2, eviction_s=0.004, scoring_s=0.01, cache_bytes_end=40),
        turn("h2o", 2, 0.1, cache_bytes_end=60),
        turn("snapkv", 1, 0.5, evictions=1, concurrency=2),
    ]
    found = {row["policy"]: row for row in timing(pl.DataFrame(rows)).to_dicts()}
    assert set(found) == {"baseline", "h2o"}  # what ran together with others has no time
    assert found["baseline"]["n_turns"] == 2 and found["baseline"]["eviction_ms"] is None
    assert found["baseline"]["ttft_s"] == pytest.approx(0.3)
    assert found["h2o"]["ttft_s"] == pytest.approx(0.2)
    assert found["h2o"]["decode_tokens_per_s"] == pytest.approx(100)
    assert (found["h2o"]["eviction_ms"], found["h2o"]["scoring_ms"]) == pytest.approx((2, 5))
    assert found["h2o"]["cache_bytes_end"] == 50 and found["h2o"]["n_evictions"] == 2


def test_the_first_training_starts_so_long_before_its_record_was_written(tmp_path: Path) -> None:
    results, records = tmp_path / "results/mine", tmp_path / "resources/provenance/models"
    (results / "benchmarks/finetune_model").mkdir(parents=True)
    records.mkdir(parents=True)
    ended = datetime(2026, 1, 1, 12, 0, tzinfo=UTC).timestamp()
    for name, seconds, later in (("one", 90.5, 0), ("two", 60.0, 60), ("base", 0, 0)):
        if seconds:
            times = results / f"benchmarks/finetune_model/{name}.tsv"
            times.write_text(f"s\th:m:s\n{seconds}\t0:01:30\n")
        (records / f"{name}.json").write_text("{}")
        os.utime(records / f"{name}.json", (ended + later, ended + later))
    assert first_training_started(results, ["base"]) is None
    started = first_training_started(results, ["base", "two", "one"])
    assert started == "2026-01-01T11:58:29+00:00"
