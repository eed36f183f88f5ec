"""The rule that makes a model's probe set."""

from __future__ import annotations

from tests.workflow.project import Project


def test_a_probe_set_needs_the_model_alone(prepared: Project) -> None:
    assert prepared.planned("results/probes/tiny.jsonl") == {("probe_set", "tiny")}
