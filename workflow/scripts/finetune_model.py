"""Fine-tune a model on evicted states; killed and started again, it goes on from a checkpoint."""

import argparse
import json
import os
from pathlib import Path

from kvfidelity.bounded_json import read_json
from kvfidelity.cli import main_guard
from kvfidelity.worker.gpus import gpu_share


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--spec", required=True, type=json.loads, help="config entry, as JSON")
    parser.add_argument("--base", required=True, type=Path, help="folder of the base model")
    parser.add_argument("--dialogues", required=True, type=Path, help="file of what it trains on")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:1")
    parser.add_argument("--threads", type=int, help="of PyTorch on a CPU")
    parser.add_argument("--run-time", type=Path, help="JSON file, with GPUs and workers on each")
    parser.add_argument("--checkpoints", required=True, type=Path, help="folder that is kept")
    parser.add_argument("--out", required=True, type=Path)
    parser.add_argument("--record", required=True, type=Path, help="copy of its provenance.json")
    parser.add_argument("--configured", type=Path, help="the source, as JSON")
    parser.add_argument("--source", type=Path, help="file for a copy of that")
    options = parser.parse_args()
    known = options.run_time and options.run_time.is_file()
    worker = read_json(options.run_time)["worker"] if known else {}
    gpus, each = worker.get("gpus", 1), worker.get("workers_per_gpu", 1)
    # As many trainings at once as runs have workers, a training in the place of each.
    with gpu_share(gpus, 1, options.device, kind="training", workers_per_gpu=each) as gpu:
        os.environ |= gpu.environment
        train(options)


def train(options: argparse.Namespace) -> None:
    """Do the work, on a GPU that the environment names. PyTorch is imported here, for it looks at
    the environment once."""
    import torch

    from kvfidelity.atomic_files import copy_file
    from kvfidelity.finetuning.model_folder import finetune_model
    from kvfidelity.models.checksums import PROVENANCE
    from kvfidelity.models.load import resolve_device
    from kvfidelity.pipeline.sources import note_fetched

    if options.threads:
        torch.set_num_threads(options.threads)
    if resolve_device(options.device).type == "cpu":
        torch.use_deterministic_algorithms(True)
    else:
        # The gradient of fused attention is not deterministic there, so products need not be exact:
        # TF32 is several times as fast. docs/finetuning.md says so.
        torch.set_float32_matmul_precision("high")

    def progress(step: int, loss: float) -> None:
        print(f"step {step}: {loss:.5f} nats per reply token", flush=True)

    finetune_model(
        options.spec,
        options.base,
        options.dialogues,
        options.out,
        options.checkpoints,
        options.device,
        progress=progress,
    )
    copy_file(options.out / PROVENANCE, options.record)
    if options.configured:
        note_fetched(options.configured, options.record, options.source)


if __name__ == "__main__":
    main_guard(main)
