"""The findings' configurations: each can be run, with one model, at the size that is asked for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from kvfidelity.errors import UserError
from kvfidelity.findings.exported import OF_QUESTION
from kvfidelity.findings.plan import (
    EXPERIMENTS,
    FINDINGS,
    FOLDER,
    MODELS,
    QWEN,
    SMOLLM2,
    Finding,
    finding_named,
    planned,
)
from kvfidelity.pipeline.run_folders import folder_of_files
from kvfidelity.pipeline.settings import read_settings
from kvfidelity.records.grid import cells

ROOT = Path(__file__).parents[2]
EACH = [(finding, model) for finding in FINDINGS for model in finding.models]


def settings_of(name: str, model: str) -> dict[str, Any]:
    files = [ROOT / file for file in finding_named(name).files(model)]
    return read_settings(files, ROOT / "config/config.yaml")


@pytest.mark.parametrize(("finding", "model"), EACH, ids=str)
def test_a_finding_runs_one_model_on_a_gpu(finding: Finding, model: str) -> None:
    chosen = settings_of(finding.name, model)
    run = {cell.model for cell in cells(chosen)}
    bases = {chosen["models"][name].get("adapter", {}).get("base", name) for name in run}
    assert bases == {model} and (finding.trained or run == {model})
    assert {chosen["models"][name]["device"] for name in run} == {"cuda"}


def test_no_configuration_is_forgotten_and_no_two_runs_share_a_folder() -> None:
    named = {ROOT / file for finding, model in EACH for file in finding.files(model)}
    assert set((ROOT / FOLDER).rglob("*.yaml")) == {
        file for file in named if file.parent != ROOT / EXPERIMENTS
    }
    folders = [folder_of_files({}, finding.files(model)) for finding, model in EACH]
    assert len(set(folders)) == len(folders)
    assert {finding.question for finding in FINDINGS} == set(OF_QUESTION)


@pytest.mark.parametrize("model", MODELS)
def test_the_papers_setting_has_its_thresholds_policies_and_24_long_dialogues(model: str) -> None:
    for name, least in (("paper_reference", "min_tokens"), ("paper_own", "min_prompt_tokens")):
        chosen = settings_of(name, model)
        (dataset,) = chosen["datasets"].values()
        assert dataset["count"] >= 24 and dataset["select"][least] >= 7000
        assert {one["at"] for one in chosen["thresholds"].values()} == {"4800tok", "5600tok"}
        assert {one["trigger"] for one in chosen["thresholds"].values()} == {"paper"}
        assert chosen["policies"]["attention_top_99"]["keep_ratio"] == 0.99
        assert chosen["policies"]["gist_2000"]["gist_tokens"] == 2000
        modes = {cell.positions for cell in cells(chosen) if cell.policy == "attention_top_99"}
        assert {"stale", "rerotated"} <= modes


@pytest.mark.parametrize("model", MODELS)
def test_equal_budgets_are_of_ten_policies_in_three_modes(model: str) -> None:
    chosen = settings_of("equal_budgets", model)
    named = chosen["thresholds"]
    # Half of the tokens are kept in a few cells, for claims.
    halves = {name for name, one in named.items() if one["target"] == "2800tok"}
    evicting = [
        cell for cell in cells(chosen) if cell.policy != "baseline" and cell.threshold not in halves
    ]
    assert len({cell.policy for cell in evicting}) == 10
    assert {cell.positions for cell in evicting} == {"stale", "original", "rerotated"}
    targets = {named[cell.threshold]["target"] for cell in evicting}
    assert targets == {"2000tok", "1000tok"} and len(evicting) == 60
    assert chosen["session"]["recall"]["needles_per_depth"] > 0


def test_dialogues_pass_one_and_a_quarter_windows_of_each_model() -> None:
    for name, model, window in (
        ("through_window", SMOLLM2, 8192),
        ("through_window_joined", QWEN, 32768),
    ):
        (dataset,) = settings_of(name, model)["datasets"].values()
        least = dataset["join_tokens"] or dataset["select"]["min_tokens"]
        assert 1.25 * window < least <= dataset["select"]["max_tokens"] < 1.7 * window
        assert dataset["count"] >= 10


def test_costs_are_of_single_runs() -> None:
    session = settings_of("cost", SMOLLM2)["session"]
    assert (session["batch_size"], session["share_prefix"], session["replies"]) == (1, False, "own")


def test_a_finding_is_planned_once_the_data_that_a_user_fetches_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    names = {finding.name for finding, _ in planned()}
    assert names == {finding.name for finding in FINDINGS if not finding.data}
    assert {model for _, model in planned(QWEN)} == {QWEN}
    for finding in FINDINGS:
        if finding.data:
            Path(finding.data).touch()
            paths = {one["path"] for one in settings_of(finding.name, QWEN)["datasets"].values()}
            assert paths == {finding.data}
    assert {finding.name for finding, _ in planned()} == {finding.name for finding in FINDINGS}


def test_an_unknown_name_is_refused_with_those_that_there_are() -> None:
    with pytest.raises(UserError, match=r"no finding is called 'budget'.*equal_budgets"):
        finding_named("budget")
    with pytest.raises(UserError, match=r"no model .* 'llama'.*smollm2-135m"):
        planned("llama")
