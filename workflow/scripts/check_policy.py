"""Import the files with user-defined policies, and build one policy of the configuration."""

import argparse
import json
from pathlib import Path

from kvfidelity.cli import main_guard
from kvfidelity.errors import UserError


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--spec", required=True, type=json.loads, help="the policy and the files")
    parser.add_argument("--out", required=True, type=Path)
    options = parser.parse_args()
    from kvfidelity.atomic_files import write_json
    from kvfidelity.cache.healing.registry import build_healing, without_healing
    from kvfidelity.cache.policies.registry import build_policy

    spec = options.spec
    parameters = {key: value for key, value in spec["entry"].items() if key != "kind"}
    try:
        own, healing = without_healing(parameters)
        build_policy(spec["entry"]["kind"], own, [Path(file) for file in spec["files"]])
        build_healing(healing)
    except UserError as error:
        raise UserError(f"policies.{spec['name']}: {error}") from None
    write_json(options.out, spec)


if __name__ == "__main__":
    main_guard(main)
