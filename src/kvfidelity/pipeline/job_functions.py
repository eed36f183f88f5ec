"""The functions that Snakemake calls for each job."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from types import FunctionType
from typing import Any


def keep_signatures(names: Mapping[str, Any]) -> None:
    """Keep the signature of each function that is defined under these names.

    Snakemake asks for it a dozen times for each job, to see which arguments a function takes. To
    derive it each time was a twentieth of a large plan.

    Args:
        names: the global names of the Snakefiles.
    """
    for function in names.values():
        if isinstance(function, FunctionType) and function.__globals__ is names:
            function.__signature__ = inspect.signature(function)  # type: ignore[attr-defined]
