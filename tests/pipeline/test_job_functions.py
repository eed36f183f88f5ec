"""Snakemake finds the signatures of the Snakefiles' functions without deriving them each time."""

from __future__ import annotations

import inspect
from typing import Any

from kvfidelity.pipeline.job_functions import keep_signatures

SNAKEFILE = """
from json import dumps

def minutes(wildcards, attempt, rulename):
    return attempt
"""


def test_only_functions_of_the_snakefiles_keep_their_signature() -> None:
    names: dict[str, Any] = {}
    exec(SNAKEFILE, names)
    keep_signatures(names)
    assert names["minutes"].__signature__ == inspect.signature(names["minutes"])
    assert list(inspect.signature(names["minutes"]).parameters) == [
        *("wildcards", "attempt", "rulename")
    ]
    assert not hasattr(names["dumps"], "__signature__")
