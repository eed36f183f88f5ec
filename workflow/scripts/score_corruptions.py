"""Score the likelihood of replies that were corrupted to test a judge."""

import argparse
import sys
from pathlib import Path

from kvfidelity.cli import main_guard
from kvfidelity.worker.command import add_model_options, parse_options, submit
from kvfidelity.worker.job import LikelihoodJob


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    add_model_options(parser)
    parser.add_argument("--texts", required=True, type=Path)
    parser.add_argument("--out", required=True, type=Path)
    options = parse_options(parser)
    if not (options.code_digest and options.policies_digest):
        # Here, for the workflow knows them, and looking at all modules takes longer than asking.
        from kvfidelity.pipeline.code_digest import policies_digest, stage_digest

        options.code_digest = options.code_digest or stage_digest("generate")
        options.policies_digest = options.policies_digest or policies_digest()
    submit(options, LikelihoodJob(str(options.texts.resolve()), str(options.out.resolve())))
    print(f"wrote {options.out}", file=sys.stderr)


if __name__ == "__main__":
    main_guard(main)
