"""Make what .test/config/config.yaml names, next to it: a tiny model of random weights, a dialogue.

Both lie in `config`, which Snakemake's `--generate-unit-tests` copies into the working directory of
each test that it makes.
"""

import json
import shutil
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
sys.path[:0] = [str(ROOT), str(ROOT / "src")]

from tests.models.tiny import save_tiny  # noqa: E402

if __name__ == "__main__":
    config = HERE / "config"
    file = save_tiny(config / "model") / "config.json"
    # The dialogue is long in byte-sized tokens; losses count inside the trained window only.
    content = json.loads(file.read_text()) | {"max_position_embeddings": 16384}
    file.write_text(json.dumps(content))
    shutil.copyfile(ROOT / "resources/dialogues/own.jsonl", config / "own.jsonl")
