"""A content digest is the same under every Python: artifacts travel between machines."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import polars as pl
import pytest

from kvfidelity.analysis.columns import TABLES
from kvfidelity.errors import UserError
from kvfidelity.records.artifacts import digest
from kvfidelity.records.columns import ARTIFACTS
from kvfidelity.records.declaration import columns
from kvfidelity.records.schema_text import schema_text, type_text
from tests.golden_table import golden_table

ROOT = Path(__file__).parents[1]
#: Another Python that has polars, unless one is found on the path.
OTHER = "KVFIDELITY_OTHER_PYTHON"

#: What Python 3.11 with polars 2.1 gives; digests written so far depend on it.
DIGEST = "a153dd34250aa489"
TEXT = (
    "Schema([('turn', Int32), ('cache_bytes', Int64), ('n_turns', UInt32), "
    "('after_eviction', Boolean), ('reply', String), ('excess_nll', Float64), "
    "('reference_token_nll', List(Float32)), ('distractor_nll', List(Float64)), "
    "('distractors', List(String)), "
    "('token_spans', List(Struct({'start': Int32, 'stop': Int32}))), "
    "('questions', List(Struct({'question': String, 'answer': String, 'category': String, "
    "'turns': List(Int32), 'wrong': List(String)})))])"
)


def test_a_digest_stays_what_it_was() -> None:
    assert digest(golden_table()) == DIGEST


def test_a_schema_is_spelled_out() -> None:
    assert schema_text(golden_table().schema) == TEXT
    assert schema_text(pl.DataFrame().schema) == "Schema()"


def test_the_golden_table_has_every_type_of_the_project() -> None:
    """A new type is to be added there, and gets a new constant digest with it."""
    from kvfidelity.dialogues.pool import SCHEMA as POOL
    from kvfidelity.judges.corruptions import SCHEMA as TEXTS

    found = [columns(*tables) for tables in ARTIFACTS.values()] + list(TABLES.values())
    declared = [type_text(info.dtype) for infos in found for info in infos]
    declared += [schema_text(pl.Schema(schema)) for schema in (POOL, TEXTS)]
    assert len(declared) > 300
    assert words(declared) <= words([TEXT]) | {"Schema"}


def words(types: list[str]) -> set[str]:
    return {word for line in types for word in re.findall(r"\b[A-Z]\w+", line)}


def test_a_type_that_no_artifact_has_is_refused() -> None:
    with pytest.raises(UserError, match=r"artifacts cannot hold columns of type Datetime"):
        digest(pl.DataFrame(schema={"when": pl.Datetime("us")}))


def other_python() -> str:
    """A Python of another version with polars."""
    names = [os.environ.get(OTHER)] + [f"python3.{minor}" for minor in (11, 12, 13, 14)]
    for name in filter(None, names):
        found = shutil.which(name)
        if found and other_version(found):
            return found
    pytest.skip(f"no other Python with polars on the path; {OTHER} may name one")


def other_version(python: str) -> bool:
    ask = "import polars, sys; print(*sys.version_info[:2])"
    done = subprocess.run([python, "-c", ask], capture_output=True, text=True, check=False)
    return done.returncode == 0 and done.stdout.split() != [str(n) for n in sys.version_info[:2]]


def test_another_python_reads_the_same_digest() -> None:
    done = subprocess.run(
        [other_python(), "-m", "tests.golden_table"],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT / "src")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout.strip() == DIGEST, done.stderr
