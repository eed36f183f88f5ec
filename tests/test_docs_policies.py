"""docs/policies.md says what each policy declares."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

from kvfidelity.cache.policies import Policy, build_policy, known_policies
from kvfidelity.pipeline.settings import read_settings

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs/policies.md").read_text(encoding="utf-8")
REQUIRED: dict[str, dict[str, Any]] = {
    "random": {"keep_ratio": 0.9},
    "sliding_window": {"keep_ratio": 0.9},
    "evict_oldest": {"discard_ratio": 0.1},
    "block": {"which": "middle"},
}
EVICTING = [kind for kind, policy in known_policies().items() if policy.evicts]


def needs(policy: Policy) -> set[str]:
    declared = {
        "scores": policy.needs_scores,
        "queries": policy.query_window > 0,
        "weights": policy.needs_output_projection,
        "calibration": policy.needs_calibration,
        "extra forward": policy.needs_extra_forward,
        "ragged": policy.ragged,
    }
    return {name for name, is_declared in declared.items() if is_declared} or {"nothing"}


def test_the_page_says_what_every_policy_needs() -> None:
    table = PAGE.split("| policy | needs |\n")[1].split("\n\n")[0].splitlines()[1:]
    said = {}
    for line in table:
        kinds, found = line.strip("| ").split(" | ")
        said |= {kind: set(found.split(", ")) for kind in re.findall(r"`(\w+)`", kinds)}
    assert said == {kind: needs(build_policy(kind, REQUIRED.get(kind, {}))) for kind in EVICTING}


def test_the_page_names_every_need_and_its_declaration() -> None:
    table = PAGE.split("| need | declared by")[1].split("\n\n")[0]
    for name in ("needs_scores", "query_window", "needs_output_projection", "needs_calibration"):
        assert f"`{name}`" in table
    assert "`needs_extra_forward`" in table and "`ragged`" in table


def test_the_pages_examples_are_policies() -> None:
    for block in re.findall(r"```yaml\n(.*?)```", PAGE, flags=re.DOTALL):
        for entry in yaml.safe_load(block)["policies"].values():
            parameters = {name: value for name, value in entry.items() if name != "kind"}
            assert build_policy(entry["kind"], parameters).ragged


def test_the_leaderboard_has_every_policy_at_three_budgets_under_corrected_positions() -> None:
    files = [ROOT / "config/config.yaml", ROOT / "config/experiments/field.yaml"]
    settings = read_settings(files)
    left_out = {entry["policy"] for entry in settings["grid"]["exclude"]}
    shown = {entry["kind"] for name, entry in settings["policies"].items() if name not in left_out}
    assert shown == set(known_policies())
    targets = [settings["thresholds"][name]["target"] for name in settings["grid"]["thresholds"]]
    assert len(set(targets)) == 3
    assert settings["grid"]["positions"] == ["rerotated"]
    assert settings["session"]["recall"]["needles_per_depth"] > 0
