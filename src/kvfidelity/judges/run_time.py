"""How a judge is asked, from the file that the workflow writes for its jobs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from kvfidelity.bounded_json import read_json
from kvfidelity.errors import UserError


def read_run_time(file: Path, judge: str) -> tuple[dict[str, Any], Path]:
    """The limits and prices of a judge, as `requests.Limits` has them, and the folder of answers.

    Raises:
        UserError: the file is missing or damaged, or does not know the judge.
    """
    try:
        content = read_json(file)
        return content["judges"][judge], Path(content["verdict_store"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{file} does not say how judge {judge} is asked ({error!r}): start the workflow, "
            "which writes it"
        ) from None
