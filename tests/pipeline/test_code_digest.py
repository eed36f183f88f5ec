"""An edit changes the digests of exactly the stages that it matters to."""

from __future__ import annotations

import ast
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from kvfidelity.pipeline.code_digest import ROOTS, closure
from kvfidelity.pipeline.syntax import canonical, imported_names

ROOT = Path(__file__).parents[2]
#: Another Python than the one that runs the tests; every one must give the same digests.
OTHER = "KVFIDELITY_OTHER_PYTHON"
STAGES = sorted(
    {
        *ROOTS,
        "aggregate",
        "claims",
        "copy_dialogues",
        "corrupt_replies",
        "judge_reliability",
        "lengths",
        "measure",
    }
)
ASK = f"""
import json
from kvfidelity.pipeline.code_digest import policies_digest, policy_digest, stage_digest
found = {{stage: stage_digest(stage) for stage in {STAGES}}}
found["h2o"] = policy_digest("kvfidelity.cache.policies.h2o")
found["keys"] = policy_digest("kvfidelity.cache.policies.keys")
found["policies"] = policies_digest()
print(json.dumps(found))
"""
#: The digest of `SAMPLE` under every Python.
SAMPLE_TEXT = (
    "Module(body=FunctionDef(name=str:'f'args=arguments(args=arg(arg=str:'x'),"
    "defaults=Constant(value=int:1),)body=Return(value=JoinedStr(values="
    "Constant(value=str:'a b'),FormattedValue(value=Name(id=str:'x'ctx=Load())"
    "conversion=int:-1format_spec=JoinedStr(values=Constant(value=str:'.2f'),)),)),),)"
)
SAMPLE = '''"""A docstring."""
if TYPE_CHECKING:
    import elsewhere
def f(x: int = 1) -> str:
    """Another."""
    # A comment.
    return "a" f" b{x:.2f}"
'''


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the library and its scripts, with the folder in which Snakemake keeps things."""
    folder = tmp_path_factory.mktemp("checkout")
    ignore = shutil.ignore_patterns("__pycache__", "*.egg-info")
    for part in ("src", "workflow/scripts"):
        shutil.copytree(ROOT / part, folder / part, ignore=ignore)
    (folder / ".snakemake").mkdir()
    return folder


def digests(folder: Path, python: str = sys.executable) -> dict[str, str]:
    done = subprocess.run(
        [python, "-c", ASK],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(folder / "src")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, str] = json.loads(done.stdout)
    return found


def changed_by(folder: Path, name: str, text: str) -> set[str]:
    """Names of the digests that change when text is added to a file."""
    before = digests(folder)
    file = folder / name
    content = file.read_text() if file.exists() else None
    file.write_text((content or "") + text)
    try:
        after = digests(folder)
    finally:
        if content is None:
            file.unlink()
        else:
            file.write_text(content)
    return {key for key in before if before[key] != after[key]}


STATEMENT = "\nCHANGED = 1\n"
LIBRARY = "src/kvfidelity"


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        (f"{LIBRARY}/dialogues/lengths.py", {"dialogues", "lengths"}),
        (f"{LIBRARY}/cache/attention.py", {"generate"}),
        (f"{LIBRARY}/decoding/scheduler.py", {"generate"}),
        (f"{LIBRARY}/cache/policies/h2o.py", {"h2o", "policies"}),
        (f"{LIBRARY}/cache/policies/keys.py", {"keys", "policies"}),
        (f"{LIBRARY}/cache/policies/base.py", {"generate"}),
        (f"{LIBRARY}/metrics/text.py", {"judge", "measure", "test_judge"}),
        (f"{LIBRARY}/dialogues/formats/locomo.py", {"dialogues", "training_dialogues"}),
        (f"{LIBRARY}/finetuning/extraction.py", {"training_dialogues"}),
        (f"{LIBRARY}/finetuning/examples.py", {"training_dialogues", "finetune"}),
        (f"{LIBRARY}/finetuning/train.py", {"finetune"}),
        (f"{LIBRARY}/finetuning/recipe.py", {"finetune"}),
        (f"{LIBRARY}/cache/slots.py", {"generate", "finetune"}),
        (f"{LIBRARY}/records/artifacts.py", set(STAGES) - {"model", "finetune", "dataset"}),
        (f"{LIBRARY}/report/position_modes.py", {"report"}),
        (f"{LIBRARY}/report/templates/page.css", {"report"}),
        (f"{LIBRARY}/report/templates/judges.html.j2", {"report"}),
        (f"{LIBRARY}/analysis/claims.schema.yaml", {"claims"}),
        (f"{LIBRARY}/pipeline/merge.py", {"merge"}),
        ("workflow/scripts/measure.py", {"measure"}),
        (f"{LIBRARY}/worker/client.py", set()),
        (f"{LIBRARY}/worker/batch_server.py", set()),
        (f"{LIBRARY}/pipeline/settings.py", set()),
        (f"{LIBRARY}/cli.py", set()),
        ("workflow/scripts/generate.py", set()),
    ],
)
def test_a_statement_changes_what_imports_it(checkout: Path, name: str, expected: set[str]) -> None:
    assert changed_by(checkout, name, STATEMENT) == expected


@pytest.mark.parametrize(
    "text",
    ["\n# A comment.\n", '\n"""Another docstring."""\n', "\nif TYPE_CHECKING:\n    import x\n"],
)
def test_what_does_nothing_changes_nothing(checkout: Path, text: str) -> None:
    assert changed_by(checkout, f"{LIBRARY}/cache/attention.py", text) == set()


def test_a_new_policy_changes_no_stage_and_no_other_policy(checkout: Path) -> None:
    name = f"{LIBRARY}/cache/policies/newest.py"
    policy = "from kvfidelity.cache.policies.base import Policy\n"
    assert changed_by(checkout, name, policy) == {"policies"}


def test_a_new_schema_version_changes_what_writes_artifacts(checkout: Path) -> None:
    name = f"{LIBRARY}/records/schema_version.py"
    expected = set(STAGES) - {"model", "training_dialogues", "finetune", "dataset", "lengths"}
    assert changed_by(checkout, name, "\nSCHEMA_VERSION += 1\n") == expected


def test_what_is_kept_gives_the_same_digests(checkout: Path) -> None:
    kept = checkout / ".snakemake/kvfidelity-code.json"
    first = digests(checkout)
    assert kept.exists()
    assert digests(checkout) == first
    kept.write_text("{")
    assert digests(checkout) == first
    kept.unlink()
    assert digests(checkout) == first


def test_a_project_that_is_copied_with_its_times_keeps_what_was_found(
    checkout: Path, tmp_path: Path
) -> None:
    first = digests(checkout)
    shutil.copytree(checkout, tmp_path / "copy")
    kept = tmp_path / "copy/.snakemake/kvfidelity-code.json"
    before = kept.stat()
    assert digests(tmp_path / "copy") == first
    assert (kept.stat().st_ino, kept.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)


def test_generating_needs_neither_the_workflow_nor_the_workers_plumbing() -> None:
    found = closure(ROOTS["generate"])
    assert not [name for name in found if name.startswith("kvfidelity.pipeline")]
    worker = {name for name in found if name.startswith("kvfidelity.worker.")}
    noted = {f"kvfidelity.worker.{name}" for name in ("generator", "job", "processor", "usage")}
    assert worker <= noted
    assert "kvfidelity.cache.triton.decode" in found, "imports inside functions count"


def test_the_text_of_a_tree() -> None:
    assert canonical(ast.parse(SAMPLE)) == SAMPLE_TEXT
    assert imported_names(ast.parse("if TYPE_CHECKING:\n import a\nimport b\nfrom c import d")) == {
        "b",
        "c.d",
    }


def test_none_and_a_missing_field_are_not_the_same() -> None:
    assert canonical(ast.parse("return_ = None")) != canonical(ast.parse("return_ = ()"))
    assert canonical(ast.parse("x = 1")) != canonical(ast.parse("x = True"))
    assert canonical(ast.parse("f(a, *b)")) != canonical(ast.parse("f(*b, a)"))


def other_python() -> str:
    """A Python of another version that can compute digests."""
    names = [os.environ.get(OTHER)] + [f"python3.{minor}" for minor in (11, 12, 13)]
    for name in filter(None, names):
        found = shutil.which(name)
        ask = "import sys; print(*sys.version_info[:2])"
        done = subprocess.run(
            [found or "false", "-c", ask], capture_output=True, text=True, check=False
        )
        if done.returncode == 0 and done.stdout.split() != [str(n) for n in sys.version_info[:2]]:
            return str(found)
    pytest.skip(f"no other Python on the path; {OTHER} may name one")


def test_another_python_gives_the_same_digests(checkout: Path) -> None:
    python = other_python()
    (checkout / ".snakemake/kvfidelity-code.json").unlink(missing_ok=True)
    other = digests(checkout, python)
    (checkout / ".snakemake/kvfidelity-code.json").unlink()
    assert digests(checkout) == other
