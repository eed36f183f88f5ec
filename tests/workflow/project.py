"""A copy of this workflow with a tiny random-weight model, and what Snakemake says about it."""

from __future__ import annotations

import compileall
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

from tests import forked_python
from tests.pipeline.test_code_digest import digests
from tests.waiting import LIMIT_S
from tests.workflow import forked

ROOT = Path(__file__).parents[2]
PARTS = (
    "Snakefile",
    "src",
    "workflow",
    "config",
    "profiles",
    "envs",
    "resources/rubrics",
    "resources/dialogues",
)
HEAD = re.compile(r"^(?:local)?rule (\w+):$")
WILDCARDS = re.compile(r"^    wildcards: (.+)$")

CONFIG: dict[str, Any] = {
    "title": "tiny",
    "models": {"tiny": {"source": "path", "path": "tiny", "label": "random weights"}},
    "datasets": {
        "own": {
            "source": "path",
            "path": "resources/dialogues/own.jsonl",
            "format": "sharegpt",
            "count": 1,
        }
    },
    "policies": {
        "baseline": {"kind": "baseline"},
        "random": {"kind": "random", "keep_ratio": 0.9},
        "streaming": {"kind": "streaming_llm", "sinks": 4},
    },
    "thresholds": {"small": {"at": "600tok", "trigger": "turn", "target": "200tok"}},
    "session": {"max_new_tokens": 3, "max_turns": 3, "max_prompt_tokens": 300},
    "grid": {"positions": ["stale", "rerotated"]},
    "judges": {"formula": {"kind": "formula", "rubric": "formula"}},
    "report": {"resamples": 100},
}

#: Artifacts of a run: its turns and evictions. CONFIG asks no recall questions.
FILES_OF_A_RUN = 2
Job = tuple[str, str]


class Project:
    """A folder with the workflow, its configuration and its outputs."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @classmethod
    def make(cls, folder: Path, model: Path) -> Project:
        for part in PARTS:
            target = folder / part
            target.parent.mkdir(parents=True, exist_ok=True)
            if (ROOT / part).is_dir():
                ignore = shutil.ignore_patterns("__pycache__", "*.egg-info")
                shutil.copytree(ROOT / part, target, ignore=ignore)
            else:
                shutil.copy2(ROOT / part, target)
        # Each copy would compile the library in its first job, and parse it in its first plan.
        compileall.compile_dir(folder / "src", quiet=1)
        (folder / ".snakemake").mkdir()
        digests(folder)
        shutil.copytree(model, folder / "tiny")
        project = cls(folder)
        project.configure({})
        return project

    def copy(self, folder: Path) -> Project:
        shutil.copytree(self.folder, folder, symlinks=True)
        return Project(folder)

    def configure(self, changes: dict[str, Any]) -> None:
        """Write the configuration; `changes` are merged into it, section by section."""
        config = merged(CONFIG, changes)
        (self.folder / "config/config.yaml").write_text(yaml.safe_dump(config, sort_keys=False))

    def reconfigure(self, changes: dict[str, Any]) -> None:
        """Merge changes into the configuration as it is."""
        file = self.folder / "config/config.yaml"
        config = merged(yaml.safe_load(file.read_text()), changes)
        file.write_text(yaml.safe_dump(config, sort_keys=False))

    def edit(self, file: str, old: str, new: str) -> None:
        path = self.folder / file
        text = path.read_text()
        assert old in text
        path.write_text(text.replace(old, new))

    def append(self, file: str, text: str) -> None:
        """Add text to a file, which is made if it is missing."""
        with (self.folder / file).open("a") as handle:
            handle.write(text)

    def snakemake(
        self, *arguments: str, timeout: float = 3 * LIMIT_S
    ) -> subprocess.CompletedProcess[str]:
        return forked.run(("--cores", "2", *arguments), self.folder, environment(), timeout)

    def start(self, *arguments: str) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            command(*arguments),
            cwd=self.folder,
            env=environment(),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )

    def planned(self, *arguments: str) -> set[Job]:
        """Jobs of a dry run: (rule, wildcards joined by slashes)."""
        done = self.snakemake("-n", "--verbose", *arguments)
        assert done.returncode == 0, done.stdout + done.stderr
        jobs, rule = set(), None
        lines = (done.stdout + done.stderr).splitlines()
        for number, line in enumerate(lines):
            found = HEAD.match(line)
            if not found:
                continue
            rule, wildcards = found[1], ""
            for following in lines[number + 1 : number + 12]:
                if HEAD.match(following):
                    break
                named = WILDCARDS.match(following)
                if named:
                    pairs = (pair.split("=", 1) for pair in named[1].split(", "))
                    wildcards = "/".join(value for _, value in pairs)
            jobs.add((rule, wildcards))
        return jobs

    def digests(self) -> dict[str, str]:
        """Content digest of every artifact, by path."""
        from kvfidelity.records.artifacts import read_metadata

        files = sorted((self.folder / "results").rglob("*.parquet"))
        return {str(file.relative_to(self.folder)): read_metadata(file)["digest"] for file in files}


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "snakemake", "--cores", "2", *arguments]


#: Variables by which a `make` speaks to those that it starts.
OF_MAKE = ("MAKEFLAGS", "MFLAGS", "MAKELEVEL", "MAKEOVERRIDES", "ARGS")


def environment() -> dict[str, str]:
    # `python` in a rule's shell is the one that runs the tests.
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    # Not what the tests were asked for: `make test ARGS=...` gives its ARGS to every make below it.
    mine = {key: value for key, value in os.environ.items() if key not in OF_MAKE}
    own = {"PATH": path, "KVFIDELITY_WORKER_IDLE_S": "20"}
    return forked_python.environment() | mine | own


def merged(config: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    out = dict(config)
    for key, value in changes.items():
        both = isinstance(value, dict) and isinstance(out.get(key), dict)
        out[key] = merged(out[key], value) if both else value
    return out
