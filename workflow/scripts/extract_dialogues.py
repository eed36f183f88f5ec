"""Clean and select dialogues: a pool and a manifest."""

import argparse
import json
from pathlib import Path

from kvfidelity.cli import main_guard


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", required=True, type=Path, help="folder of the fetched dataset")
    parser.add_argument("--tokenizer", required=True, type=Path, help="converted model directory")
    parser.add_argument("--spec", required=True, type=json.loads, help="config entry, as JSON")
    parser.add_argument("--pool", required=True, type=Path)
    parser.add_argument("--manifest", required=True, type=Path)
    options = parser.parse_args()
    from kvfidelity.artifacts import write_json, write_parquet
    from kvfidelity.dialogues.extract import extract
    from kvfidelity.dialogues.segments import ChatSegmenter
    from transformers import AutoTokenizer

    segmenter = ChatSegmenter(AutoTokenizer.from_pretrained(options.tokenizer))
    pool, manifest = extract(options.data, options.spec, segmenter)
    write_json(options.manifest, manifest)
    write_parquet(pool, options.pool, kind="dialogues")
    print(f"kept {manifest['kept']} of {manifest['conversations_read']} conversations")
    print("dropped:", json.dumps(manifest["dropped"]))


if __name__ == "__main__":
    main_guard(main)
