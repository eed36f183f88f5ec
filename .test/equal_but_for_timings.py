"""A plugin of pytest for the tests that `snakemake --generate-unit-tests` makes of `.test`.

They compare files byte by byte, but artifacts and tables hold times. So an artifact's content is
compared without its timings, as its digest does; of the files that are made of timings only that
they are there. Two rules read the files of all runs without listing them as inputs, because each
record of Snakemake's would hold the list; here they are put where these tests look for inputs.

    PYTHONPATH=.test python -m pytest -p equal_but_for_timings .test/.tests/unit
"""

import shutil
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent / "src")]

from kvfidelity.records.artifacts import read_metadata  # noqa: E402

#: Files with times in them that have no digest.
TIMED = {"report.html", "jobs.csv", "environments.csv"}
#: Folders of results that a rule reads without listing their files.
UNLISTED = {"aggregate": ("generate", "dialogues"), "report": ("generate", "dialogues")}


@pytest.fixture(autouse=True)
def content_is_compared(request, monkeypatch):
    rule = request.path.stem.removeprefix("test_")
    for name in UNLISTED.get(rule, ()):
        there = request.path.parent / rule / "data/results" / name
        shutil.copytree(HERE / "results" / name, there, dirs_exist_ok=True)
    # A module of the folder with the made tests.
    import common

    byte_by_byte = common.OutputChecker.compare_files

    def compare_files(self, expected, made, cmp_cmds):
        if expected.name in TIMED:
            assert made.stat().st_size > 0, made
        elif expected.suffix == ".parquet" and expected.stem != "jobs":
            digests = [read_metadata(file)["digest"] for file in (expected, made)]
            assert digests[0] == digests[1], f"{expected} differs"
        elif expected.suffix != ".parquet":
            byte_by_byte(self, expected, made, cmp_cmds)

    monkeypatch.setattr(common.OutputChecker, "compare_files", compare_files)
