"""Likelihoods of corrupted replies, from the worker or from a process without one."""

from __future__ import annotations

import os
import subprocess
import sys

import polars as pl

from kvfidelity.records.artifacts import read_metadata, write_parquet
from tests.waiting import LIMIT_S
from tests.worker.conftest import SCRIPTS, Workdir


def score(workdir: Workdir, out: str, *arguments: str) -> tuple[int, str]:
    command = [sys.executable, str(SCRIPTS / "score_corruptions.py"), "--model-dir", "model"]
    command += ["--threads", "1", "--texts", "corruptions.parquet", "--out", out, *arguments]
    done = subprocess.run(
        command,
        cwd=workdir.folder,
        env=os.environ | workdir.environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=LIMIT_S,
    )
    return done.returncode, done.stderr


def test_the_warm_worker_scores_and_both_ways_agree(warm: Workdir) -> None:
    row = {"item": 0, "kind": "good", "history": [{"user": "a", "assistant": "b"}]}
    texts = pl.DataFrame([row | {"prompt": "And?", "reply": "It is."}])
    write_parquet(texts, warm.folder / "corruptions.parquet", kind="corruptions")
    worker = warm.worker().pid
    code, stderr = score(warm, "one.parquet")
    assert code == 0, stderr
    assert warm.worker().pid == worker and "loading" not in stderr
    code, stderr = score(warm, "other.parquet", "--no-worker")
    assert code == 0, stderr
    digests = [read_metadata(warm.folder / f"{n}.parquet")["digest"] for n in ("one", "other")]
    assert digests[0] == digests[1]


def test_a_missing_table_is_one_line(warm: Workdir) -> None:
    (warm.folder / "corruptions.parquet").unlink(missing_ok=True)
    code, stderr = score(warm, "one.parquet")
    assert code == 2
    assert stderr.splitlines()[-1].startswith("error: ") and "Traceback" not in stderr
