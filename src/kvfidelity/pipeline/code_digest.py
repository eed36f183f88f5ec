"""A digest of the code that a stage's artifacts depend on.

Snakemake does not see imported modules. So each rule has its stage's digest in its parameters:
a change that matters reruns the stage, a change elsewhere does not.

What matters is derived. A stage starts at its scripts; from there every import of a module of this
package is followed, also those inside functions. A module counts by its syntax tree without
comments, docstrings and annotations, so that rewording and formatting rerun nothing.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path

from kvfidelity.pipeline.module_digests import ModuleDigests
from kvfidelity.records.schema_version import SCHEMA_VERSION

PACKAGE = Path(__file__).resolve().parents[1]
SCRIPTS = PACKAGE.parents[1] / "workflow" / "scripts"
#: Where a stage starts: scripts (`name.py`) and modules. A stage without an entry starts at the
#: script of its name.
ROOTS: dict[str, tuple[str, ...]] = {
    "model": ("fetch_model.py",),
    "training_dialogues": ("extract_training_dialogues.py",),
    "finetune": ("finetune_model.py",),
    "dataset": ("fetch_dataset.py",),
    "dialogues": ("extract_dialogues.py",),
    # Not the script: which process computes a run, and how it is asked, changes no run.
    "generate": ("kvfidelity.worker.generator", "kvfidelity.decoding.scheduler"),
    "judge": ("judge.py", "request_judge_batch.py", "compare_replies.py"),
    "test_judge": ("test_judge.py", "compare_replies.py"),
    "merge": ("merge.py", "kvfidelity.pipeline.merge"),
    "report": ("figures.py", "report.py"),
}
#: Modules that are not followed. The workflow's own decide what is run with which parameters, and
#: those are compared themselves; the others only word what goes wrong.
NOT_FOLLOWED = ("kvfidelity.pipeline", "kvfidelity.cli", "kvfidelity.errors")
#: Modules that a stage does not follow. The proof decides whether a model may be used. It is run
#: again when a model is loaded, so a change of the cache needs no model fetched again. Nor does it
#: need one trained again: a training has a forward of its own, which tests compare with the cache,
#: and no cache. `lengths` counts what a figure shows, and `gpus` says on which GPU it is trained.
NOT_FOLLOWED_BY: dict[str, tuple[str, ...]] = {
    "model": ("kvfidelity.cache.proof",),
    "training_dialogues": ("kvfidelity.dialogues.lengths",),
    "finetune": (
        "kvfidelity.cache.attach",
        "kvfidelity.cache.managed",
        "kvfidelity.worker.gpus",
    ),
}
#: Counted by its number, and only for stages that write artifacts.
VERSION_MODULE = "kvfidelity.records.schema_version"
#: Stages that write no artifact: a new schema version does not rerun them.
WITHOUT_ARTIFACTS = frozenset({"model", "training_dialogues", "finetune", "dataset", "lengths"})
#: Its modules are found when a run needs one; a run's parameters have the digest of its policy.
POLICIES = "kvfidelity.cache.policies"
DIGITS = 12


@cache
def stage_digest(stage: str) -> str:
    """The digest of a stage's code, 12 hex digits, read once in a process.

    Raises:
        FileNotFoundError: neither an entry of ROOTS nor a script has this name.
    """
    version = "" if stage in WITHOUT_ARTIFACTS else f"schema version {SCHEMA_VERSION}"
    roots = ROOTS.get(stage, (f"{stage}.py",))
    return _digest(closure(roots, NOT_FOLLOWED_BY.get(stage, ())), version)


@cache
def policy_digest(*modules: str) -> str:
    """The digest of built-in policies' code beyond that of stage `generate`; 12 hex digits.

    Args:
        modules: a policy's, and those of the policies that it wraps.
    """
    return _digest(_beyond_generate(modules))


@cache
def policies_digest() -> str:
    """The digest of all built-in policies: a process that is kept warm has imported them."""
    return _digest(_beyond_generate(_modules().modules_in(POLICIES)))


def closure(roots: Sequence[str], without: Sequence[str] = ()) -> list[str]:
    """The roots and all modules of this package that they import, directly or not; sorted.

    Args:
        without: modules that are not followed, besides NOT_FOLLOWED.
    """
    modules, found, waiting = _modules(), set(), list(roots)
    while waiting:
        name = waiting.pop()
        if name in found or name in without:
            continue
        found.add(name)
        waiting += [other for other in _followed(modules, name) if other not in found]
    return sorted(found)


def _beyond_generate(roots: Sequence[str]) -> list[str]:
    return sorted(set(closure(roots)) - set(closure(ROOTS["generate"])))


def _followed(modules: ModuleDigests, name: str) -> Iterator[str]:
    for imported in modules.imports(name):
        # The root package only says where its public names are.
        skipped = imported in ("kvfidelity", VERSION_MODULE) or any(
            imported == other or imported.startswith(f"{other}.") for other in NOT_FOLLOWED
        )
        if not skipped:
            yield imported
    for package in modules.searched_packages(name):
        if package != POLICIES:
            yield from modules.modules_in(package)


def _digest(names: Sequence[str], *more: str) -> str:
    modules = _modules()
    parts = [*more, *(f"{name} {modules.digest(name)}" for name in names)]
    modules.save()
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:DIGITS]


@cache
def _modules() -> ModuleDigests:
    return ModuleDigests(PACKAGE, SCRIPTS)
