"""The default grid's runs of one dialogue on a CPU, by batch size, in this process.

    python benchmarks/batch_cpu.py --batch-sizes 1,4,16 --threads 1

After `make run`, in the project's folder. Processor seconds are comparable on a machine with other
work; wall time is not. `grid.py` runs the same jobs through Snakemake.
"""

from __future__ import annotations

import argparse
import os
import time
from functools import partial
from pathlib import Path

import torch

from kvfidelity.decoding.engine import Engine
from kvfidelity.decoding.scheduler import run_batch
from kvfidelity.dialogues.pool import read_dialogue
from kvfidelity.generation.run import Records, run_dialogue
from kvfidelity.generation.spec import RunSpec
from kvfidelity.pipeline.rule_params import generation_parameters
from kvfidelity.pipeline.settings import read_settings
from kvfidelity.prefix.cache import PrefixCache
from kvfidelity.records.grid import RunKey, run_keys

RESULTS = Path("results")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--batch-sizes", default="1,4,16", help="the first one is compared with")
    parser.add_argument("--dialogue", default="000")
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    settings = read_settings([Path("config/config.yaml")])
    keys = [RunKey.from_path(run) for run in run_keys(settings)]
    keys = [key for key in keys if key.dialogue == options.dialogue]
    model, dataset = keys[0].model, keys[0].dataset
    engine = Engine.load(Path("resources/models") / model, "float32", "cpu")
    talk = read_dialogue(RESULTS / f"dialogues/{model}/{dataset}/pool.parquet", options.dialogue)
    specs = [RunSpec.from_json(generation_parameters(settings, RESULTS, key)) for key in keys]
    engine.feed(engine.new_cache("original"), list(range(100, 200)))

    def run(at: Engine, spec: RunSpec, store: PrefixCache) -> Records:
        return run_dialogue(at, talk, spec, store)

    first: tuple[float, list[Records]] | None = None
    for size in map(int, options.batch_sizes.split(",")):
        store, load = PrefixCache(1 << 31), os.getloadavg()[0]
        wall, used = time.perf_counter(), time.process_time()
        records = run_batch(
            engine,
            [partial(run, spec=spec, store=store) for spec in specs],
            size,
        )
        wall, used = time.perf_counter() - wall, time.process_time() - used
        first = first or (used, records)
        print(
            f"| batch_size {size}, {len(specs)} runs | {used:.1f} s of processors, "
            f"{wall:.1f} s wall (load {load:.1f}) | {first[0] / used:.2f} | "
            f"{largest(first[1], records):.0e} nats |",
            flush=True,
        )


def largest(first: list[Records], records: list[Records]) -> float:
    """Largest difference of a turn's NLL between runs."""
    pairs = zip(first, records, strict=True)
    return max(
        float((one.turns["reference_nll"] - other.turns["reference_nll"]).abs().max())  # type: ignore[arg-type]
        for one, other in pairs
    )


if __name__ == "__main__":
    main()
