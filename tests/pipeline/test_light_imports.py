"""What the Snakefile imports loads nothing heavy: it is parsed again in many jobs."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

HEAVY = ("torch", "transformers", "polars", "numpy", "openai", "altair", "datasets")
RULES = Path(__file__).parents[2] / "workflow/rules"
IMPORT = re.compile(r"^from (kvfidelity[.\w]+) import", re.MULTILINE)


def test_the_snakefile_imports_nothing_heavy() -> None:
    texts = [file.read_text() for file in RULES.glob("*.smk")]
    imports = sorted({name for text in texts for name in IMPORT.findall(text)})
    assert len(imports) > 5
    lines = ["import sys", *(f"import {name}" for name in imports)]
    lines.append(f"print([name for name in {HEAVY} if name in sys.modules])")
    command = [sys.executable, "-c", "\n".join(lines)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
