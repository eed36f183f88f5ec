"""Snakemake in a process that has it imported already: most of a dry run is that import.

The standard library's fork server imports Snakemake once. Each call forks it: nothing of a workflow
is imported there, and no call sees what another one did.
"""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

#: Snakemake, its plugins, and what the Snakefile uses of other packages.
IMPORTED = (
    "tests.workflow.preloaded",
    "snakemake_executor_plugin_slurm",
    "jsonschema",
    "yaml",
    __name__,
)
SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(list(IMPORTED))


def run(
    arguments: Sequence[str], folder: Path, environment: Mapping[str, str], timeout: float
) -> subprocess.CompletedProcess[str]:
    """What `snakemake` with these arguments does and prints.

    Raises:
        subprocess.TimeoutExpired: it took longer than `timeout` seconds; it is killed.
    """
    with tempfile.TemporaryDirectory() as scratch:
        files = [Path(scratch) / name for name in ("stdout", "stderr")]
        process = SERVER.Process(
            target=_snakemake, args=(list(arguments), folder, dict(environment), *files)
        )
        process.start()
        process.join(timeout)
        if process.exitcode is None:
            process.kill()
            process.join()
            raise subprocess.TimeoutExpired(["snakemake", *arguments], timeout)
        output = [file.read_text(encoding="utf-8", errors="replace") for file in files]
        return subprocess.CompletedProcess(["snakemake", *arguments], process.exitcode, *output)


def _snakemake(
    arguments: list[str], folder: Path, environment: dict[str, str], stdout: Path, stderr: Path
) -> None:
    for number, file in ((1, stdout), (2, stderr)):
        with file.open("wb") as opened:
            os.dup2(opened.fileno(), number)
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    sys.argv = ["snakemake", *arguments]
    from snakemake.cli import main

    main()
