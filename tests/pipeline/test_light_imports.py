"""What the Snakefile imports loads nothing heavy: it is parsed again in many jobs."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

HEAVY = ("torch", "transformers", "polars", "numpy", "openai", "altair", "datasets")
RULES = Path(__file__).parents[2] / "workflow/rules"


def test_the_snakefile_imports_nothing_heavy() -> None:
    imports = {
        line
        for file in RULES.glob("*.smk")
        for line in re.findall(r"^from (kvfidelity[.\w]+) import", file.read_text(), re.MULTILINE)
    }
    assert len(imports) > 5
    names = ", ".join(sorted(imports))
    code = f"import sys, {names}
print([name for name in {HEAVY} if name in sys.modules])"
        f"import sys, {', '.join(sorted(imports))}\nprint([m for m in {HEAVY} if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
