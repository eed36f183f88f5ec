"""Choose the dialogues that models are fine-tuned on, as token ids; no GPU is used."""

import argparse
import json
from pathlib import Path

from kvfidelity.cli import main_guard


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--spec", required=True, type=json.loads, help="which, as JSON")
    parser.add_argument("--base", required=True, type=Path, help="folder of the base model")
    parser.add_argument("--data", required=True, type=Path, help="folder of the fetched dataset")
    parser.add_argument("--out", required=True, type=Path)
    parser.add_argument("--record", required=True, type=Path, help="what is in it, in short")
    options = parser.parse_args()
    from kvfidelity.atomic_files import write_json
    from kvfidelity.finetuning.extraction import extract_training_dialogues

    about = extract_training_dialogues(options.spec, options.base, options.data, options.out)
    write_json(options.record, about)
    found, manifest = about["dialogues"], about["manifest"]
    print(f"{found['number']} dialogues, {found['tokens']} tokens")
    print("dropped:", json.dumps(manifest["dropped"]))


if __name__ == "__main__":
    main_guard(main)
