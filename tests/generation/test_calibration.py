"""A calibration is measured once, stored with its provenance, and noted in the runs that use it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from kvfidelity.cache.policies import build_policy
from kvfidelity.decoding.engine import Engine
from kvfidelity.generation.calibration import TOKENS, calibration_notes, ensure_calibrated, text_ids

NEEDS = build_policy("duo_attention", {})


def rotary(engine: Engine) -> Any:
    return engine.model.get_decoder().rotary_emb


@pytest.fixture
def storing(engine: Engine, tmp_path: Path) -> Engine:
    rotary(engine).calibration = None
    return replace(engine, calibrations=tmp_path / "calibrations")


def test_a_calibration_is_stored_once_and_read_by_the_next_process(storing: Engine) -> None:
    ensure_calibrated(storing, NEEDS)
    first = rotary(storing).calibration
    assert storing.calibrations is not None
    [file] = storing.calibrations.iterdir()
    written = file.stat().st_mtime_ns
    rotary(storing).calibration = None
    ensure_calibrated(storing, NEEDS)
    again = rotary(storing).calibration
    assert again is not first and file.stat().st_mtime_ns == written
    assert torch.equal(again.filters, first.filters)
    assert torch.equal(again.retrieval, first.retrieval)
    assert dict(again.provenance) == dict(first.provenance)
    assert set(first.provenance) == {"model", "dtype", "text", "text_is", "tokens", "code"}
    assert int(first.provenance["tokens"]) == len(text_ids(storing)) <= TOKENS


def test_another_model_is_another_calibration(storing: Engine) -> None:
    ensure_calibrated(storing, NEEDS)
    rotary(storing).calibration = None
    weight = storing.model.get_input_embeddings().weight
    kept = weight.detach().clone()
    try:
        with torch.no_grad():
            weight[5] += 1
        ensure_calibrated(storing, NEEDS)
    finally:
        with torch.no_grad():
            weight.copy_(kept)
    assert storing.calibrations is not None
    assert len(list(storing.calibrations.iterdir())) == 2


@pytest.mark.parametrize("content", [b"", b"not a safetensors file"])
def test_a_damaged_file_is_measured_and_written_again(storing: Engine, content: bytes) -> None:
    ensure_calibrated(storing, NEEDS)
    first = rotary(storing).calibration
    assert storing.calibrations is not None
    [file] = storing.calibrations.iterdir()
    file.write_bytes(content)
    rotary(storing).calibration = None
    ensure_calibrated(storing, NEEDS)
    assert torch.equal(rotary(storing).calibration.filters, first.filters)
    assert file.read_bytes() != content


def test_a_policy_without_need_of_it_costs_no_forward(storing: Engine) -> None:
    ensure_calibrated(storing, build_policy("snapkv", {}))
    assert rotary(storing).calibration is None
    assert calibration_notes(storing, NEEDS) == {}
    ensure_calibrated(storing, NEEDS)
    assert calibration_notes(storing, build_policy("snapkv", {})) == {}
    noted = json.loads(calibration_notes(storing, NEEDS)["calibration"])
    assert noted == dict(rotary(storing).calibration.provenance)
