"""Fine-tune a model on evicted states; killed and started again, it goes on from a checkpoint."""

import argparse
import contextlib
import json
from collections.abc import Iterator
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
    train(options, worker.get("gpus", 1), worker.get("workers_per_gpu", 1))


@contextlib.contextmanager
def place_of(device: str, gpus: int, workers_per_gpu: int) -> Iterator[str]:
    """A place on a GPU, of which each has as many as runs have workers; gives its device."""
    import torch

    from kvfidelity.models.load import resolve_device

    with gpu_share(gpus, 1, device, kind="training", workers_per_gpu=workers_per_gpu) as gpu:
        found = resolve_device(device)
        if found.type == "cpu":
            torch.use_deterministic_algorithms(True)
            yield "cpu"
            return
        # The gradient of fused attention is not deterministic there, so products need not be exact:
        # TF32 is several times as fast. docs/finetuning.md says so.
        torch.set_float32_matmul_precision("high")
        # By its number: PyTorch has looked at the environment before there was a place.
        number = (found.index or 0) if gpus == 1 else gpu.number % gpus
        used = f"cuda:{number}"
        torch.cuda.set_device(number)
        if workers_per_gpu > 1:
            # PyTorch keeps what is freed, and others need it; docs/finetuning.md says how much.
            torch.cuda.set_per_process_memory_fraction(1 / (workers_per_gpu + 1), number)
        yield used


def train(options: argparse.Namespace, gpus: int, workers_per_gpu: int) -> None:
    """Do the work. PyTorch is imported here, once the options are known to be right."""
    import torch

    from kvfidelity.atomic_files import copy_file
    from kvfidelity.finetuning.model_folder import finetune_model
    from kvfidelity.models.checksums import PROVENANCE
    from kvfidelity.pipeline.sources import note_fetched

    if options.threads:
        torch.set_num_threads(options.threads)

    def progress(step: int, loss: float) -> None:
        print(f"step {step}: {loss:.5f} nats per reply token", flush=True)

    finetune_model(
        options.spec,
        options.base,
        options.dialogues,
        options.out,
        options.checkpoints,
        place_of(options.device, gpus, workers_per_gpu),
        progress=progress,
    )
    copy_file(options.out / PROVENANCE, options.record)
    if options.configured:
        note_fetched(options.configured, options.record, options.source)


if __name__ == "__main__":
    main_guard(main)
