"""Publishes a finished run: its small tables and the facts of the run, in
`docs/findings/FINDING/MODEL/`."""

from __future__ import annotations

import json
import os
import shlex
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import polars as pl

from kvfidelity.atomic_files import replacing, write_text
from kvfidelity.errors import UserError
from kvfidelity.findings.exported import ALWAYS, DERIVED, EXPORTED, OF_QUESTION, published
from kvfidelity.findings.plan import finding_named
from kvfidelity.findings.published import AGAIN, DOCS, FACTS, published_runs
from kvfidelity.findings.repetition import COMPARED, compare
from kvfidelity.findings.timing import timing
from kvfidelity.pipeline.invocation import read_invocation
from kvfidelity.records.arms import NO_ARM
from kvfidelity.records.artifacts import read_metadata, read_parquet
from kvfidelity.records.notes import MADE, WALL

#: Bytes of all that is published, at most.
MOST_BYTES = 5_000_000
UNKNOWN = "not recorded"
#: Seconds of each training, in the folder of the results.
TRAININGS = "benchmarks/finetune_model"


def export_run(
    results: Path, finding: str, docs: Path = DOCS, label: str = "", shared: bool = False
) -> list[Path]:
    """Publish a run: one folder for each of its models.

    Args:
        results: the folder of the run's results.
        finding: the finding's name, of `plan.FINDINGS`.
        docs: where all findings are published.
        label: what a reader must know of this run first, such as "small run on a CPU".
        shared: other work ran on its GPU or its processor cores, so its minutes are upper bounds.

    Returns:
        The folders.

    Raises:
        UserError: no such finding; the run is not finished; a text that is no name; all that is
            published would be larger than MOST_BYTES.
    """
    question = finding_named(finding).question
    tables = _tables(results)
    wanted = (*ALWAYS, *OF_QUESTION[question])
    turns = tables.pop("turns")
    folders = []
    # What is known of a model that a run trained is in the tables of its base.
    for model in turns.filter(arm=NO_ARM)["model"].unique().sort():
        folder = docs / finding / model
        folder.mkdir(parents=True, exist_ok=True)
        # A repetition is of what was published before.
        for old in (*folder.glob("*.parquet"), *folder.glob("*.csv"), folder / AGAIN):
            old.unlink(missing_ok=True)
        for name in wanted:
            part = published(name, _of_model(tables[name], model))
            if part.height:
                _write(folder, name, part)
        of_model = turns.filter(base_model=model)
        facts = {"label": label, "shared": shared} | run_facts(
            results, model, of_model, tables["environments"]
        )
        write_text(folder / FACTS, json.dumps(facts, indent=1) + "\n")
        folders.append(folder)
    refuse_large(docs)
    return folders


def export_repetition(results: Path, finding: str, docs: Path = DOCS) -> list[Path]:
    """Publish how far a second run is from the published one: of all its numbers only the
    comparison, and the facts of the second run.

    Args:
        results: the folder of the second run's results.
        finding: the finding's name. docs: where all findings are published.

    Returns:
        The folders of the finding's models that were compared.

    Raises:
        UserError: the finding is not published with this run's models; the run is the published
            one, or copied what that had computed.
    """
    finding_named(finding)
    tables = _tables(results)
    turns = tables["turns"]
    folders = []
    for run in published_runs(docs):
        of_model = turns.filter(model=run.model)
        if run.finding.name != finding or of_model.is_empty():
            continue
        facts = run_facts(results, run.model, of_model, tables["environments"])
        if facts["first_made"] is None or facts["first_made"] <= (run.facts["last_made"] or ""):
            raise UserError(
                f"{results}: its first dialogue was computed at {facts['first_made']}, before the "
                f"published run ended ({run.facts['last_made']}), so it is not a second run of "
                "it; make one in another working folder (snakemake --directory)"
            )
        second = {name: tables[name].filter(model=run.model) for name in COMPARED}
        _write(run.folder, "repetition", compare(run.tables, second))
        write_text(run.folder / AGAIN, json.dumps(facts, indent=1) + "\n")
        folders.append(run.folder)
    if not folders:
        models = ", ".join(turns["model"].unique().sort())
        raise UserError(f"{docs}: {finding} is not published with {models}; publish it first")
    refuse_large(docs)
    return folders


def _of_model(table: pl.DataFrame, model: str) -> pl.DataFrame:
    """A table's rows of a model; all of one that does not tell models apart."""
    if "model" not in table.columns:
        return table
    return table.filter(pl.col("model").fill_null(model) == model)


def _tables(results: Path) -> dict[str, pl.DataFrame]:
    """The published tables of a run in full, and `turns`."""
    folder = results / "tables"
    names = [name for name in ("turns", *EXPORTED) if name not in DERIVED]
    missing = [name for name in names if not (folder / f"{name}.parquet").is_file()]
    if missing:
        raise UserError(
            f"{results}: there is no table {missing[0]}; finish the run, then export it again"
        )
    tables = {name: read_parquet(folder / f"{name}.parquet", kind=name) for name in names}
    return tables | {"timing": timing(tables["turns"])}


def _write(folder: Path, name: str, table: pl.DataFrame) -> None:
    with replacing(folder / f"{name}.parquet") as temporary:
        table.write_parquet(temporary, compression="zstd")
    write_text(folder / f"{name}.csv", table.write_csv(float_precision=6))


def run_facts(
    results: Path, model: str, turns: pl.DataFrame, environments: pl.DataFrame
) -> dict[str, Any]:
    """What a reader must know to judge and repeat a run of one model.

    Args:
        turns: its turns, and those of models that were trained from it. environments: the table of
            that name, of all models.
    """
    started = read_invocation(results)
    places = environments.filter(pl.col("model").is_in(turns["model"].unique().implode()))
    own = turns.filter(model=model)
    count = turns.group_by("dataset").agg(pl.col("dialogue").n_unique()).sort("dataset")
    times = [*places["first_made"].drop_nulls(), *places["last_made"].drop_nulls()]
    configuration = started.get("configuration", {})
    entry = configuration.get("models", {}).get(model, {})
    return {
        "title": configuration.get("title", UNKNOWN),
        "command": typed_command(started.get("command")),
        "date": (started.get("started") or min(times, default=UNKNOWN))[:10],
        "commit": started.get("commit") or UNKNOWN,
        "version": started.get("version") or UNKNOWN,
        "model": model,
        "model_revision": own["model_revision"][0],
        # The same file may come from another package.
        "weights_sha256": entry.get("member_sha256") or entry.get("sha256"),
        "dtype": turns["dtype"].drop_nulls().first(),
        "trained_window": turns["trained_window"].drop_nulls().first(),
        "device": turns["device"].drop_nulls().first(),
        "hardware": places["hardware"].drop_nulls().unique().sort().to_list(),
        "versions": places["versions"].drop_nulls().unique().sort().to_list(),
        "code": places["code"].drop_nulls().unique().sort().to_list(),
        "first_started": first_started(results, turns["model"].unique()),
        "first_training_started": first_training_started(results, turns["model"].unique()),
        "first_made": min(times, default=None),
        "last_made": max(times, default=None),
        "dialogues": dict(count.iter_rows()),
        "runs": turns["run"].n_unique(),
        "trainings": turns["model"].n_unique() - 1,
        "turns": turns.height,
        "batch_size": configuration.get("session", {}).get("batch_size"),
        "workers_per_gpu": configuration.get("session", {}).get("workers_per_gpu", 1),
        "replies": turns["replies"][0],
    }


def first_started(results: Path, models: Iterable[str]) -> str | None:
    """When the first dialogue of these models was started, ISO 8601 in UTC; None if no artifact
    says."""
    starts = []
    folders = [results / "generate" / model for model in models]
    for file in (file for folder in folders for file in folder.rglob("turns.parquet")):
        notes = read_metadata(file)
        if MADE in notes and WALL in notes:
            lasted = timedelta(seconds=float(notes[WALL]))
            starts.append(datetime.fromisoformat(notes[MADE]) - lasted)
    return min(starts).isoformat(timespec="seconds") if starts else None


def typed_command(text: str | None) -> str:
    """A recorded command as another machine would type it: without the place that it ran in, and
    with files elsewhere called by their names."""
    if not text:
        return UNKNOWN
    here = Path.cwd()
    program, *rest = shlex.split(text)
    # Of `python -m snakemake` the name of the program is that of its file.
    words = ["snakemake" if program == "__main__.py" else program]
    while rest:
        word = rest.pop(0)
        if word in ("--directory", "-d") and rest:
            rest.pop(0)
            continue
        path = Path(word)
        if path.is_absolute():
            inside = path.is_relative_to(here)
            word = os.path.relpath(path, here) if inside else path.name
        words.append(word)
    return shlex.join(words)


def refuse_large(docs: Path) -> None:
    """Raises:
    UserError: all that is published is larger than MOST_BYTES.
    """
    size = sum(file.stat().st_size for file in docs.rglob("*") if file.is_file())
    if size > MOST_BYTES:
        raise UserError(
            f"{docs}: {size:,} bytes are published, more than {MOST_BYTES:,}; leave tables or "
            "columns out in kvfidelity.findings.exported"
        )


def first_training_started(results: Path, models: Iterable[str]) -> str | None:
    """When the first training of these models was started, ISO 8601 in UTC; None if they were
    trained by no job of this run."""
    records = results.parent.parent / "resources/provenance/models"
    starts = []
    for model in models:
        times, record = results / TRAININGS / f"{model}.tsv", records / f"{model}.json"
        if times.is_file() and record.is_file():
            lasted = timedelta(
                seconds=float(pl.read_csv(times, separator="\t", glob=False)["s"][0])
            )
            starts.append(datetime.fromtimestamp(record.stat().st_mtime, UTC) - lasted)
    return min(starts).isoformat(timespec="seconds") if starts else None
