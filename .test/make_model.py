"""Make .test/model, which .test/config/config.yaml names: a tiny model of random weights."""

import json
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent), str(HERE.parent / "src")]

from tests.models.tiny import save_tiny  # noqa: E402

if __name__ == "__main__":
    file = save_tiny(HERE / "model") / "config.json"
    # The dialogue is long in byte-sized tokens; losses count inside the trained window only.
    content = json.loads(file.read_text()) | {"max_position_embeddings": 16384}
    file.write_text(json.dumps(content))
