"""End the workflow's warm worker, if there is one."""

from kvfidelity.cli import main_guard
from kvfidelity.worker.client import stop

if __name__ == "__main__":
    main_guard(stop)
