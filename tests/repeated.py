"""How much of what is random the tests try; KVFIDELITY_TIMES=6 tries six times as much."""

import os

TIMES = int(os.environ.get("KVFIDELITY_TIMES", "1"))
