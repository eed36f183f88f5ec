"""A forked process is as the started one, or tests of workers would be of something else."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import psutil

from tests.forked_python import NOT_FORKED, environment
from tests.waiting import LIMIT_S, wait_until

#: Says what it is, then waits for its standard input to end.
PROGRAM = """
import json, os, sys
of_place = os.getcwd(), os.environ["MINE"], sys.argv, sys.path[0]
print(json.dumps([os.getpid(), *of_place, "torch" in sys.modules]))
sys.stdout.flush()
sys.stdin.read()
sys.exit(3)
"""


def started(folder: Path, **own: str) -> tuple[subprocess.Popen[str], list[object]]:
    (folder / "program.py").write_text(PROGRAM)
    process = subprocess.Popen(
        [sys.executable, "program.py", "--no-worker"],
        cwd=folder,
        env=environment() | os.environ | {"MINE": "here"} | own,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout
    return process, json.loads(process.stdout.readline())


def test_it_has_what_the_started_process_has_and_its_status(tmp_path: Path) -> None:
    plain, (pid, *expected, torch) = started(tmp_path, **NOT_FORKED)
    assert (pid, torch) == (plain.pid, False)
    forked, (pid, *found, torch) = started(tmp_path)
    assert isinstance(pid, int) and pid != forked.pid and torch
    assert found == expected
    assert [part for part in psutil.Process(pid).cmdline() if part] == forked.args
    for process in (plain, forked):
        process.communicate(timeout=LIMIT_S)
        assert process.returncode == 3


def test_it_ends_with_the_process_that_asked(tmp_path: Path) -> None:
    asking, (pid, *_) = started(tmp_path)
    assert isinstance(pid, int)
    asking.kill()
    wait_until(lambda: not psutil.pid_exists(pid))
    asking.communicate(timeout=LIMIT_S)


def test_it_is_killed_as_a_process_is(tmp_path: Path) -> None:
    asking, (pid, *_) = started(tmp_path)
    assert isinstance(pid, int)
    psutil.Process(pid).kill()
    assert asking.wait(LIMIT_S) == -9
    asking.communicate()
