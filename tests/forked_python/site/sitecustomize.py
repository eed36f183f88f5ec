"""Python imports this when it starts: a process that loads a model asks for a forked one.

It stays while that one runs, with an empty command line and in no project's folder, for tests look
for processes by these, and ends as that one ends. Without a server it starts by itself.
"""

import os
import sys
from pathlib import Path

PROGRAMS = ("fetch_model.py", "finetune_model.py", "make_probe_set.py")
ARGUMENTS = ("kvfidelity.worker.server", "--no-worker")

if os.environ.get("FORK_SERVER") and len(sys.orig_argv) > 1:
    first = sys.orig_argv[1]
    if Path(first).name in PROGRAMS or (
        (first == "-m" or first.endswith(".py")) and any(one in sys.orig_argv for one in ARGUMENTS)
    ):
        sys.path.append(str(Path(__file__).parents[1]))
        from asking import ask

        sys.path.pop()
        ask()
