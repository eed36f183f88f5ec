"""How a workflow's jobs are run, as far as no artifact depends on it: one file, read by the jobs.

A worker's batch size and memory, how fast judges are asked, what they cost and where paid answers
are kept. None of it is a parameter of a rule, so a change makes nothing again. Nor is it a
resource, which would limit jobs or be asked of a scheduler.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kvfidelity.atomic_files import write_json
from kvfidelity.pipeline.code_digest import policies_digest
from kvfidelity.pipeline.rule_params import judge_limits

#: Its name, in the folder of the results.
FILE = "run_time.json"
#: What `session` says of the worker.
SESSION_KEYS = (
    "batch_size",
    "workers_per_gpu",
    "prefix_memory",
    "prefix_disk",
    "store_prefixes",
)


def write_run_time(results: Path, settings: Mapping[str, Any], gpus: int) -> None:
    """Write the file.

    Args:
        settings: the checked configuration.
        gpus: GPUs that jobs may use on one machine.
    """
    session = settings["session"]
    content = {
        "worker": {"gpus": gpus, "policies_digest": policies_digest()}
        | {key: session[key] for key in SESSION_KEYS},
        "verdict_store": settings["verdict_store"],
        "judges": {name: judge_limits(settings, name) for name in settings["judging"]},
    }
    write_json(results / FILE, content)
