"""Make the probe set that inference engines of a model are checked with."""

import argparse
from pathlib import Path

from kvfidelity.cli import main_guard


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", required=True, type=Path, help="the model's folder")
    parser.add_argument("--dialogues", required=True, type=Path, help="JSON Lines, ShareGPT format")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", required=True, type=Path)
    options = parser.parse_args()
    import torch

    from kvfidelity.decoding.engine import Engine
    from kvfidelity.engine_check.make import make_probe_set, model_source, read_dialogues
    from kvfidelity.engine_check.probes import write_probe_set
    from kvfidelity.engine_check.schedules import Sizes

    torch.set_num_threads(options.threads)
    engine = Engine.load(options.model, "float32", "cpu")
    dialogues = read_dialogues(engine, options.dialogues)
    sizes = Sizes.for_window(engine.window)
    source = model_source(options.model)
    write_probe_set(options.out, make_probe_set(engine, dialogues, sizes, source))


if __name__ == "__main__":
    main_guard(main)
