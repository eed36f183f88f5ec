"""Jobs can tell whether a worker runs and serves what they need, without asking it."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

from kvfidelity.worker.job import WorkerConfig
from kvfidelity.worker.serving import is_serving, note_serving
from tests.waiting import wait_until
from tests.worker.conftest import Workdir
from tests.worker.test_ahead import CONFIG


def test_a_note_without_a_worker_does_not_count(tmp_path: Path) -> None:
    socket = tmp_path / "worker.sock"
    assert not is_serving(socket, CONFIG)
    note_serving(socket, CONFIG)
    assert not is_serving(socket, CONFIG)


def test_a_worker_serves_one_configuration_until_it_ends(workdir: Workdir) -> None:
    given = ("--batch-size", "2")
    assert workdir.end(workdir.start("job", *given))[0] == 0
    [worker] = workdir.workers()
    [_, _, _, path, config, *_] = worker.cmdline()
    serving = WorkerConfig.of(json.loads(config))
    assert is_serving(Path(path), serving)
    assert not is_serving(Path(path), dataclasses.replace(serving, model_revision="another"))
    worker.kill()
    wait_until(lambda: not is_serving(Path(path), serving))
