"""Print where the results of a configuration's run lie: results_folder.py FILE..."""

import argparse
from pathlib import Path

from kvfidelity.cli import main_guard


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("files", nargs="+", type=Path, help="as given to Snakemake")
    options = parser.parse_args()
    from kvfidelity.errors import UserError
    from kvfidelity.pipeline.run_folders import folder_of_files

    missing = [str(file) for file in options.files if not file.is_file()]
    if missing:
        raise UserError(f"CONFIG: there is no file {missing[0]}; give a configuration's path")
    print(folder_of_files({}, options.files))


if __name__ == "__main__":
    main_guard(main)
