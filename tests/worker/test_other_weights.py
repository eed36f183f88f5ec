"""A worker with a batch goes on with other weights of the same model; else another one starts."""

from __future__ import annotations

import json
import shutil
import threading
from dataclasses import replace
from pathlib import Path

import pytest

from kvfidelity.models.checksums import LOSS_CURVE, differ_in_weights_alone
from tests.models.tiny import save_tiny
from tests.waiting import LIMIT_S, wait_until
from tests.worker.conftest import Workdir
from tests.worker.test_ahead import CONFIG, Clients, clients, taken, with_patience
from tests.worker.test_batch_server import BATCH, OWN, ends, same_runs

__all__ = ["clients"]

RETRAINED = ("--model-dir", "retrained")
#: A policy that ranks by what is known of the model's heads, which depends on its weights.
CALIBRATED = {"kind": "qfilter", "policy_files": ()}


@pytest.fixture
def two(workdir: Workdir) -> Workdir:
    """With a second model that differs in its weights, as a training leaves it."""
    save_tiny(workdir.folder / "retrained", seed=1)
    (workdir.folder / "retrained" / LOSS_CURVE).write_text("{}")
    return workdir


@pytest.mark.parametrize("cell", [OWN, CALIBRATED], ids=["own replies", "calibrated"])
def test_it_computes_with_the_other_weights_what_a_new_worker_does(
    two: Workdir, cell: dict[str, object]
) -> None:
    assert two.run("one", *BATCH, **cell)[0] == 0
    worker = two.worker().pid
    code, stderr = two.run("other", *BATCH, *RETRAINED, **cell)
    assert (code, stderr.count("loading")) == (0, 1), stderr
    assert two.run("back", *BATCH, **cell)[0] == 0
    assert two.worker().pid == worker
    same_runs(two, "back", "one")
    two.stop()
    assert two.run("fresh", *BATCH, *RETRAINED, **cell)[0] == 0
    assert two.worker().pid != worker
    same_runs(two, "other", "fresh")
    with pytest.raises(AssertionError):
        same_runs(two, "other", "one")


def test_clients_of_other_weights_wait_until_the_others_are_served(two: Workdir) -> None:
    held = {"held": two.start("held", *BATCH, **OWN, **two.fault_spec("hold"))}
    wait_until(two.faults_done)
    worker = two.worker().pid
    waiting = {
        name: two.start(name, *BATCH, *RETRAINED, **OWN, seed=seed)
        for seed, name in enumerate(("first", "second"))
    }
    two.let_go()
    ended = ends(two, held | waiting)
    assert [code for code, _ in ended.values()] == [0] * 3, ended
    assert sum(stderr.count("loading") for _, stderr in ended.values()) == 2
    assert two.worker().pid == worker


def test_runs_ahead_that_are_on_their_way_are_dropped_for_clients_of_other_weights(
    two: Workdir, clients: Clients, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No job has asked for them in time; those of the next weights share nothing with them."""
    with_patience(two, monkeypatch, 0)
    held = clients.job("held", seed=1, **two.fault_spec("hold"), **OWN)
    first = threading.Thread(
        target=clients.request, args=(clients.job("first", max_turns=1, **OWN), [held]), daemon=True
    )
    first.start()
    wait_until(two.faults_done)
    worker = two.worker().pid
    other = replace(CONFIG, model_dir=str(two.folder / "retrained"))
    with taken(other, clients.job("other", **OWN)):
        two.let_go()
        wait_until(clients.made("other"))
    first.join(LIMIT_S)
    assert clients.made("first")()
    dropped_after = len(two.faults_done())
    clients.request(held, [])
    assert len(two.faults_done()) > 2 * dropped_after, "it was computed from its start"
    assert two.worker().pid == worker
    two.stop()
    assert two.run("fresh", *BATCH, *RETRAINED, **OWN)[0] == 0
    same_runs(two, "other", "fresh")


def test_another_configuration_or_tokenizer_needs_another_worker(two: Workdir) -> None:
    assert two.run("one", *BATCH)[0] == 0
    worker = two.worker().pid
    config = two.folder / "retrained" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"rms_norm_eps": 1e-3}))
    assert two.run("other", *BATCH, *RETRAINED)[0] == 0
    assert two.worker().pid != worker


def test_damaged_weights_are_one_error_and_the_first_model_is_computed_as_before(
    two: Workdir,
) -> None:
    assert two.run("one", *BATCH, **OWN)[0] == 0
    weights = two.folder / "retrained" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    code, stderr = two.run("other", *BATCH, *RETRAINED, **OWN)
    assert code == 2 and "retrained" in stderr and "delete the model's folder" in stderr
    assert two.run("again", *BATCH, **OWN)[0] == 0
    same_runs(two, "again", "one")


def test_what_differs_in_weights_alone(tmp_path: Path) -> None:
    one, other = save_tiny(tmp_path / "one"), save_tiny(tmp_path / "other", seed=1)
    assert differ_in_weights_alone(one, other)
    (other / LOSS_CURVE).write_text("{}")
    (other / "provenance.json").write_text("{}")
    assert differ_in_weights_alone(one, other)
    for name in ("config.json", "tokenizer.json"):
        changed = tmp_path / name
        shutil.copytree(other, changed)
        (changed / name).write_text((changed / name).read_text() + " ")
        assert not differ_in_weights_alone(one, changed)
    (other / "added_tokens.json").write_text("{}")
    assert not differ_in_weights_alone(one, other)
