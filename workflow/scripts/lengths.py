"""Draw how long a dataset's conversations are."""

import argparse
import json
from pathlib import Path

from kvfidelity.cli import main_guard


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--manifest", required=True, type=Path)
    parser.add_argument("--title", required=True)
    parser.add_argument("--out", required=True, type=Path)
    options = parser.parse_args()
    import vl_convert

    from kvfidelity.atomic_files import write_text
    from kvfidelity.dialogues.lengths import length_chart

    chart = length_chart(json.loads(options.manifest.read_text(encoding="utf-8")), options.title)
    write_text(options.out, vl_convert.vegalite_to_svg(chart.to_json()))


if __name__ == "__main__":
    main_guard(main)
