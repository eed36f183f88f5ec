"""Every profile plans the default target: groups, resources and threads of every rule."""

from __future__ import annotations

import re
import shutil
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.waiting import LIMIT_S
from tests.workflow import forked
from tests.workflow.project import ROOT, Project, environment

PROFILES = sorted(folder.name for folder in (ROOT / "profiles").iterdir())
CLUSTERS = [name for name in PROFILES if name != "default"]
GROUP = re.compile(r"Group job (\S+) \(jobs in lexicogr\. order\):")
RULE = re.compile(r"^( *)(?:local)?rule (\w+):$")
GROUPS = {
    "dialogues_tiny_own": {"extract_dialogues", "lengths", "corrupt_replies"},
    "runs_tiny_own_000": {"generate"},
    "texts_tiny_own": {"measure"},
    "analysis": {"aggregate", "judge_reliability", "claims", "paper_tables", "figures", "report"},
}
#: Rules outside any group. `score_corruptions` is a job by itself; the others run where the
#: workflow was started.
ALONE = {"fetch_model", "fetch_dataset", "judge", "score_corruptions", "test_judge", "all"}
ASKING = {"request_judge_batch", "compare_replies", "test_pairwise_judge"}
REMOTE = {"kind": "openai", "model": "local", "base_url": "http://127.0.0.1:9", "api_key_env": None}
JUDGES = {
    "formula": {"kind": "formula", "rubric": "formula"},
    "batched": REMOTE | {"rubric": "blind", "batch": True},
    "pairs": REMOTE | {"rubric": "pairwise"},
}
BY_ALL_JUDGES = {"judges": JUDGES, "judging": list(JUDGES)}


def profile(name: str) -> dict[str, Any]:
    found = yaml.safe_load((ROOT / "profiles" / name / "config.yaml").read_text())
    assert isinstance(found, dict)
    return found


def planned(project: Project, name: str, *arguments: str) -> str:
    """What a dry run with a profile says.

    A profile whose executor is not installed is planned without it and its options.
    """
    executor = profile(name).get("executor")
    if executor and not find_spec(f"snakemake_executor_plugin_{executor}"):
        rest = {
            key: value
            for key, value in profile(name).items()
            if key != "executor" and not key.startswith(f"{executor}-")
        }
        file = project.folder / "profiles" / name / "config.yaml"
        file.write_text(yaml.safe_dump(rest))
    elif executor == "kubernetes":
        arguments = (*arguments, *stored(project))
    options = ("--profile", f"profiles/{name}", "-n", "--verbose", *arguments)
    done = forked.run(options, project.folder, environment(), LIMIT_S)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def stored(project: Project) -> list[str]:
    """Options that the profile's comment asks for: an image, and a storage with source files."""
    storage = project.folder / "storage"
    for folder in ("config", "resources/rubrics"):
        shutil.copytree(project.folder / folder, storage / folder)
    image = ["--container-image", "registry/kvfidelity"]
    return [*image, "--default-storage-provider", "fs", "--default-storage-prefix", str(storage)]


def groups(output: str) -> dict[str | None, set[str]]:
    """Rules of each group; None has those that are in none. Those of a group are indented."""
    found: dict[str | None, set[str]] = {}
    group = None
    for line in output.splitlines():
        if named := GROUP.search(line):
            group = named[1]
        elif rule := RULE.match(line):
            found.setdefault(group if rule[1] else None, set()).add(rule[2])
    return found


def resources(output: str, rule: str) -> dict[str, str]:
    """The resources of one of a rule's jobs."""
    lines = output.splitlines()
    start = next(n for n, line in enumerate(lines) if line.strip() == f"rule {rule}:")
    line = next(line for line in lines[start:] if line.strip().startswith("resources:"))
    pairs = (pair.split("=", 1) for pair in line.split("resources:")[1].split(", ") if "=" in pair)
    return {key.strip(): value for key, value in pairs}


@pytest.mark.parametrize(
    ("judges", "more"), [({}, set()), (BY_ALL_JUDGES, ASKING)], ids=["formula", "all judges"]
)
@pytest.mark.parametrize("name", PROFILES)
def test_a_profile_plans_the_default_target(
    fresh: Project, tmp_path: Path, name: str, judges: dict[str, Any], more: set[str]
) -> None:
    project = fresh.copy(tmp_path / "project")
    project.configure(judges)
    found = groups(planned(project, name))
    expected = GROUPS if name in CLUSTERS else {}
    alone = ALONE | more | set().union(*GROUPS.values()).difference(*expected.values())
    assert found == {None: alone, **expected}


@pytest.mark.parametrize("name", CLUSTERS)
def test_many_models_datasets_and_dialogues_are_planned(
    fresh: Project, tmp_path: Path, name: str
) -> None:
    """More runs of a dialogue than fit into one group."""
    project = fresh.copy(tmp_path / "project")
    one = yaml.safe_load((project.folder / "config/config.yaml").read_text())
    project.configure(
        {
            "models": {"other": one["models"]["tiny"]},
            "datasets": {"own": {"count": 2}, "others": one["datasets"]["own"]},
            "policies": {f"own{n}": {"kind": "streaming_llm", "sinks": n} for n in range(1, 9)},
        }
    )
    found = groups(planned(project, name))
    assert {f"runs_{m}_{d}" for m in ("tiny", "other") for d in ("own_001", "others_000")} < set(
        map(str, found)
    )
    assert found["analysis"] == GROUPS["analysis"]


@pytest.mark.parametrize("name", CLUSTERS)
def test_threads_memory_and_time_of_a_clusters_jobs(
    fresh: Project, tmp_path: Path, name: str
) -> None:
    # A dry run counts one core unless it is given more.
    output = planned(fresh.copy(tmp_path / "project"), name, "--cores", "8")
    assert output.count("threads: 4") == 5 + 1, "five runs, and the corrupted replies"
    for rule in set().union(*GROUPS.values()):
        assert resources(output, rule)["serial"] == "0", "elsewhere than on a scheduler"
    measure = resources(output, "measure")
    assert (measure["mem_mb"], measure["runtime"]) == ("2000", "3")
    assert resources(output, "report")["mem_mb"] == "4000"
    assert (
        resources(output, "generate")["gpu"] == resources(output, "score_corruptions")["gpu"] == "1"
    )


def test_run_time_is_that_of_a_cpu_if_no_gpu_is_requested(fresh: Project, tmp_path: Path) -> None:
    """By the profile, by the command line, and by the model's device."""
    rules = ("generate", "score_corruptions")
    without_gpu = ("--set-resources", *(f"{rule}:gpu=0" for rule in rules))

    def asked(number: int, *arguments: str, device: str = "auto") -> list[tuple[str, int]]:
        """GPUs and minutes of a job of each rule."""
        project = fresh.copy(tmp_path / str(number))
        # A folder whose weights say nothing of their size counts as 8B weights.
        for file in (project.folder / "tiny").glob("*.safetensors"):
            file.write_bytes(b"not yet there")
        project.reconfigure({"models": {"tiny": {"device": device}}})
        output = planned(project, "slurm", *arguments)
        found = [resources(output, rule) for rule in rules]
        return [(each["gpu"], int(each["runtime"])) for each in found]

    on_gpu, on_cpu = asked(0), asked(1, *without_gpu)
    for (gpu, fast), (cpu, slow) in zip(on_gpu, on_cpu, strict=True):
        assert (gpu, cpu) == ("1", "0")
        assert slow > 20 * fast, "8B weights, of which reading takes both the same time"
    assert asked(2, device="cpu") == on_cpu
    assert asked(3, "--resources", "gpu=0") == on_cpu
    assert asked(4, *without_gpu, device="cuda") == [("0", fast) for _, fast in on_gpu]


@pytest.mark.parametrize("name", CLUSTERS)
def test_no_key_of_the_default_profile_hides_another_profiles(name: str) -> None:
    """Snakemake reads profiles/default too, and takes its values."""
    default, other = profile("default"), profile(name)
    assert {key for key in default if key in other and default[key] != other[key]} == set()


def test_rules_that_ask_judges_run_where_the_workflow_was_started() -> None:
    """There are the network, the keys, and the lock of what was answered."""
    rules = "\n".join(file.read_text() for file in (ROOT / "workflow/rules").glob("*.smk"))
    bodies = dict(re.findall(r"^rule (\w+):\n(.*?)(?=^rule |\Z)", rules, re.M | re.S))
    asking = {rule for rule, body in bodies.items() if "--name {wildcards.judge:q}" in body}
    assert asking >= {"judge", "test_judge"} | ASKING
    local = re.search(r"^localrules:\n((?:    \w+,\n)+)", (ROOT / "Snakefile").read_text(), re.M)
    assert local
    named = set(re.findall(r"\w+", local[1]))
    assert {rule for rule in asking - named if "localrule: True" not in bodies[rule]} == set()
