"""Whether an artifact is what this configuration and this code would make, by its own notes.

Snakemake's records of how it made a file are in its folder `.snakemake`. Results that are copied
without that folder have the same information in their Parquet metadata: `code`, the digest of the
stage's code; `settings`, the digest of its part of the configuration (a run has that part in full,
as `spec`); `inputs`, the digests of the artifacts that it was made from.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from kvfidelity.errors import UserError
from kvfidelity.pipeline import rule_params
from kvfidelity.pipeline.code_digest import stage_digest
from kvfidelity.pipeline.workflow_files import rubric_file
from kvfidelity.records.grid import (
    CELL_FIELDS,
    GENERATED,
    RUN_FIELDS,
    cells,
    runs_by_dialogue,
)
from kvfidelity.records.notes import ALL, digest_of_digests, input_digest, input_notes

#: Length of the digest of a run's specification.
SPEC_DIGITS = 8
#: Tables by the stage that writes them; any other is not checked.
TABLES = {"turns": "aggregate", "claims": "claims", "reliability": "judge_reliability"}


def notes_of(
    stage: str, entry: Mapping[str, Any] | None = None, **inputs: Path | Sequence[Path]
) -> dict[str, str]:
    """The notes of an artifact: how it was made.

    Args:
        entry: the part of the configuration that its stage was given.
        inputs: files that it is made from, or several of one kind; a missing one is not noted.
    """
    notes = {"code": stage_digest(stage)}
    if entry is not None:
        notes["settings"] = _settings_digest(entry)
    return notes | input_notes(**inputs)


def differing_setting(made: Mapping[str, Any], expected: Mapping[str, Any]) -> str | None:
    """The first setting of a run that is not as expected: "sinks 4, this configuration says 64"."""
    plain: dict[str, Any] = json.loads(json.dumps(expected))
    for key, value in plain.items():
        found = made.get(key)
        if found == value:
            continue
        if isinstance(found, dict) and isinstance(value, dict):
            key = next(k for k in {**value, **found} if found.get(k) != value.get(k))
            found, value = found.get(key), value.get(key)
        return f"{key} {found!r}, this configuration says {value!r}"
    return None


class Expectations:
    """What the notes of a results folder's artifacts should be.

    Args:
        settings: the checked configuration, or what `rule_params.table_settings` chooses of it.
            Only the former gives reasons in full.
        results: the folder.
    """

    def __init__(self, settings: Mapping[str, Any], results: Path) -> None:
        self._settings = settings
        self._results = results
        self._of_dialogue = runs_by_dialogue(settings)
        self._runs = frozenset(run for runs in self._of_dialogue.values() for run in runs)
        self._specs: dict[str, dict[str, Any] | str] = {}
        if "specs" in settings:
            chunks = zip(*[iter(settings["specs"])] * SPEC_DIGITS, strict=True)
            digests = map("".join, chunks)
            self._specs = {
                cell.run_key(""): d for cell, d in zip(cells(settings), digests, strict=True)
            }
        # Merged runs may be older than this code; they agree with each other.
        self._any_code = bool(settings["merge"])
        self._digests: dict[Path, str | None] = {}
        self._notes: dict[Path, dict[str, str]] = {}
        self._reasons: dict[tuple[str, str, str | None], str | None] = {}

    @cached_property
    def inputs_of_tables(self) -> list[Path]:
        """The artifacts that tables are made from, in a fixed order."""
        judges = [f"judge/{judge}" for judge in self._scoring_judges()]
        stages = [f"generate/{{}}/{name}" for name in GENERATED]
        of_dialogues = ["metrics/{}/metrics", *(f"{judge}/{{}}/verdicts" for judge in judges)]
        runs, dialogues = sorted(self._runs), sorted(self._of_dialogue)
        names = [stage.format(run) for stage in stages for run in runs]
        names += [stage.format(one) for stage in of_dialogues for one in dialogues]
        return [self._results / f"{name}.parquet" for name in names]

    def notes(self, path: Path) -> dict[str, str]:
        """The notes of an artifact. They are kept: tables are made of thousands of files, and each
        is asked for its notes three times.

        Raises:
            UserError: it is missing or damaged.
        """
        from kvfidelity.records.artifacts import read_metadata

        if path not in self._notes:
            self._notes[path] = read_metadata(path)
        return self._notes[path]

    def stale(self, path: Path) -> str | None:
        """Why an artifact is not what would be made today; None if it is, or if it has no notes.

        Raises:
            UserError: it is damaged.
        """
        stage, *parts = path.relative_to(self._results).with_suffix("").parts
        expected = self._expected(stage, parts)
        if expected is None:
            return None
        notes = self.notes(path)
        if "code" in expected and not self._any_code and notes.get("code") != expected["code"]:
            return "it was made by other code"
        if stage == "generate" and (reason := self._other_settings(notes, parts)):
            return f"it was made with {reason}"
        if "settings" in expected and notes.get("settings") != expected["settings"]:
            return "it was made with other settings"
        for name, digest in json.loads(notes.get("inputs", "{}")).items():
            if name == ALL:
                if self._joint_digest(self.inputs_of_tables) not in (digest, None):
                    return "it was made from other artifacts"
                continue
            file = self._input(name, stage, parts)
            if isinstance(file, list):
                if self._joint_digest(file) not in (digest, None):
                    return "it was made from other runs of its dialogue"
            elif file is not None and self._digest(file) not in (digest, None):
                return f"it was made from another {file}"
            if (
                name == "dataset"
                and isinstance(file, Path)
                and (other := self._other_source(file, digest))
            ):
                return f"it was made from {other}"
        return None

    def _expected(self, stage: str, parts: list[str]) -> dict[str, str] | None:
        """The notes to compare with, or None if there are none."""
        settings, run = self._settings, "/".join(parts[-1 - len(RUN_FIELDS) : -1])
        if stage == "generate" and run in self._runs:
            return {"code": stage_digest("generate")}
        dialogue = "/".join(parts[-4:-1])
        if stage == "metrics" and dialogue in self._of_dialogue:
            return {"code": stage_digest("measure")}
        if stage in ("judge", "comparisons") and dialogue in self._of_dialogue:
            known = settings.get("judges", {}).get(parts[0])
            return notes_of("judge", rule_params.judge_params(settings, parts[0])) if known else {}
        if stage == "dialogues" and parts[-1] == "pool" and parts[1] in settings["datasets"]:
            return notes_of("dialogues", rule_params.selection_params(settings, parts[1]))
        if stage == "tables" and parts[0] in TABLES:
            return self._expected_of_table(TABLES[parts[0]])
        return None

    def _other_settings(self, notes: Mapping[str, str], parts: list[str]) -> str | None:
        """The setting that a run was made with and that is configured otherwise.

        It is found once for all files of a cell that were made with the same settings.
        """
        cell = dict(zip(CELL_FIELDS, parts, strict=False))
        key = "/".join([*cell.values(), ""])
        alike = (key, notes.get("spec", "{}"), notes.get("dtype"))
        if alike not in self._reasons:
            self._reasons[alike] = self._differing_setting(cell, *alike)
        return self._reasons[alike]

    def _differing_setting(
        self, cell: Mapping[str, str], key: str, spec: str, dtype: str | None
    ) -> str | None:
        made = json.loads(spec) | {"dtype": dtype}
        if self._any_code and "policy_files" not in made:
            made.pop("policy_digest", None)
        if key not in self._specs:
            self._specs[key] = rule_params.run_settings(
                self._settings, self._results, **cell, dialogue=""
            )
        known = self._specs[key]
        if isinstance(known, str):
            return None if rule_params.spec_digest(made) == known else "other settings"
        return differing_setting(made, known)

    def _expected_of_table(self, stage: str) -> dict[str, str] | None:
        match stage:
            case "aggregate":
                return notes_of(stage, rule_params.table_settings(self._settings, self._results))
            case "judge_reliability":
                return notes_of(stage, rule_params.grid_settings(self._settings))
            case _:
                return notes_of(stage, self._settings["report"])

    def _input(self, name: str, stage: str, parts: list[str]) -> Path | list[Path] | None:
        """The file or files of an input's note, None for an input that is not compared."""
        dialogue = "/".join(parts[-4:-1])
        match name:
            case "turns":
                runs = self._of_dialogue[dialogue]
                return [self._results / f"generate/{run}/turns.parquet" for run in runs]
            case "metrics":
                return self._results / f"metrics/{dialogue}/metrics.parquet"
            case "rubric":
                entry = self._settings.get("judges", {}).get(parts[0])
                return rubric_file(entry["rubric"]) if entry else None
            case "pool":
                return self._results / f"dialogues/{parts[0]}/{parts[1]}/pool.parquet"
            case "model":
                return Path(f"resources/provenance/models/{parts[0]}.json")
            case "dataset":
                entry = self._settings["datasets"][parts[1]]
                digest = rule_params.source_digest(entry)
                return Path(f"resources/provenance/datasets/{parts[1]}/{digest}.json")
            case _:
                return None

    def _other_source(self, record: Path, digest: str) -> Path | None:
        """The record of another source of this dataset that an artifact was made from.

        Where the configured source has no record, nothing says what was fetched: results that were
        copied without `resources` are taken as they are, those of another source are not.
        """
        if record.is_file():
            return None
        others = sorted(record.parent.glob("*.json"))
        return next((other for other in others if self._digest(other) == digest), None)

    def _digest(self, file: Path) -> str | None:
        """None for a file that is damaged or not here, such as weights: it cannot be compared."""
        if file not in self._digests:
            try:
                parquet = file.suffix == ".parquet"
                self._digests[file] = (
                    self.notes(file).get("digest", "") if parquet else input_digest(file)
                )
            except (UserError, OSError):
                self._digests[file] = None
        return self._digests[file]

    def _joint_digest(self, files: list[Path]) -> str | None:
        """None if one of them is damaged or not here."""
        digests = list(map(self._digest, files))
        known = [digest for digest in digests if digest is not None]
        return digest_of_digests(known) if len(known) == len(digests) else None

    def note_of_inputs(self) -> dict[str, str]:
        """The note of the artifacts that tables are made from; an empty dict if one is damaged."""
        together = self._joint_digest(self.inputs_of_tables)
        return {"inputs": json.dumps({ALL: together})} if together else {}

    def _scoring_judges(self) -> list[str]:
        chosen = self._settings["judging"]
        known = self._settings.get("judges")
        return rule_params.active_judges(self._settings, pairwise=False) if known else list(chosen)


def refuse_stale(expected: Expectations) -> None:
    """Stop before tables are made of artifacts that this configuration would not make.

    Raises:
        UserError: their number, the first of them, why it is stale, and the remedy.
    """
    paths = expected.inputs_of_tables
    found = [(path, reason) for path in paths if (reason := expected.stale(path))]
    if found:
        path, reason = found[0]
        raise UserError(
            f"{len(found)} of {len(paths)} artifacts are not what this configuration and code "
            f"would make, such as {path}: {reason}; `make verify` names them, and `make verify "
            "ARGS=--remove` moves them aside so that the next run makes them"
        )


def _settings_digest(entry: Mapping[str, Any]) -> str:
    # Rules put their code's digest into the same string; that has its own note.
    text = json.dumps({k: v for k, v in entry.items() if k != "code"}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
