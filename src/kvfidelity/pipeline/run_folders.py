"""The name of a configuration's run, and the folder of its results.

A configuration names its run (`run: NAME`), or else its file does. All that the run makes lies in
`results/NAME`, in the same tree for every run, so that two experiments do not overwrite each other.
The run of config/config.yaml is called `default` and lies in `results` itself.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from kvfidelity.errors import UserError
from kvfidelity.pipeline.workflow_files import CONFIGURATION, workflow_file
from kvfidelity.strict_yaml import read_yaml

RESULTS = Path("results")
LOGS = Path("logs")
DEFAULT_RUN = "default"
NAME = re.compile("[A-Za-z0-9][A-Za-z0-9._-]*")
#: What a run's folder holds. Those of the default run lie next to the folders of the others.
CONTENTS = frozenset(
    {
        "benchmarks",
        "checks",
        "comparisons",
        "corruptions",
        "dialogues",
        "figures",
        "generate",
        "invocation.json",
        "judge",
        "judge_batches",
        "merge.json",
        "metrics",
        "probes",
        "reliability",
        "report.html",
        "run_time.json",
        "snakemake-report.zip",
        "tables",
    }
)


def run_name(config: Mapping[str, Any], given: Mapping[str, Any], files: Sequence[Path]) -> str:
    """The name of a run.

    Args:
        config: the whole configuration.
        given: what the command line gives of it; a name in the default is not that of others.
        files: the configuration files that the command line names.

    Raises:
        UserError: no run can have this name.
    """
    default = workflow_file(CONFIGURATION).absolute()
    others = [file for file in files if not _is_same(Path(file).absolute(), default)]
    name = given.get("run") or "-".join(Path(file).stem for file in others) or config.get("run")
    if not name:
        return DEFAULT_RUN
    if not isinstance(name, str) or not NAME.fullmatch(name):
        reason = "may have letters, digits, dots, dashes and underscores only"
    elif name in CONTENTS:
        reason = f"is what the default run calls a part of its results, {RESULTS / name}"
    elif name == DEFAULT_RUN:
        reason = f"is the name of the run of {CONFIGURATION}"
    else:
        return name
    where = " + ".join(map(str, others)) or "config"
    raise UserError(f"{where}: run: the name {name!r} {reason}; add a line such as `run: my-run`")


def _is_same(file: Path, other: Path) -> bool:
    """Whether they are one file, or a copy: Snakemake's unit tests give the default by its path in
    the folder that they copied it from."""
    return file == other or (
        file.is_file() and other.is_file() and file.read_bytes() == other.read_bytes()
    )


def folder_of_files(config: Mapping[str, Any], files: Sequence[Path]) -> Path:
    """Where the results of a configuration lie that was read from files.

    Raises:
        UserError: a file cannot be read, or no run can have the name that they give.
    """
    given = {key: value for file in files for key, value in (read_yaml(file) or {}).items()}
    return results_folder(run_name(config, given, files))


def results_folder(name: str) -> Path:
    """Where the results of a run lie, relative to the working directory."""
    return RESULTS if name == DEFAULT_RUN else RESULTS / name


def logs_folder(name: str) -> Path:
    """Where the logs of a run lie."""
    return LOGS if name == DEFAULT_RUN else LOGS / name


def named_runs(results: Path = RESULTS) -> list[str]:
    """The runs whose folders lie in a results folder."""
    if not results.is_dir():
        return []
    folders = (folder for folder in results.iterdir() if folder.name not in CONTENTS)
    return sorted(folder.name for folder in folders if (folder / "dialogues").is_dir())


def run_folders(prefix: Path = Path()) -> list[Path]:
    """The results folders of all runs of this working directory, the default's first.

    Args:
        prefix: of everything that a module makes.
    """
    names = named_runs(prefix / RESULTS)
    return [prefix / RESULTS, *(prefix / results_folder(name) for name in names)]


def folder_of(run: str) -> Path:
    """The results of a run that is given by its name or by its folder.

    Raises:
        UserError: there is neither; with the names that there are.
    """
    names = [DEFAULT_RUN, *named_runs()]
    if run in names:
        return results_folder(run)
    if Path(run).is_dir():
        return Path(run)
    raise UserError(f"no run and no folder is called {run!r}; the runs here are {', '.join(names)}")
