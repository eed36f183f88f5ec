"""Convert one GGUF file to a model directory, checked as a fetched model is."""

import argparse
from pathlib import Path

from kvfidelity.cli import main_guard


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("file", type=Path, help="the GGUF file")
    parser.add_argument("out", type=Path, help="the new model directory")
    options = parser.parse_args()
    from kvfidelity.models.fetch import fetch_model

    fetch_model({"source": "path", "path": str(options.file)}, options.out)


if __name__ == "__main__":
    main_guard(main)
