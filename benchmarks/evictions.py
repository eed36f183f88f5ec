"""What an eviction costs: every policy, and uniform ones side by side with another commit.

    python benchmarks/evictions.py --against COMMIT
    python benchmarks/evictions.py --repeated --device cuda --against COMMIT

A model with random weights (4 layers, 9 query heads, 3 kv heads of 64, fp32) is fed 1,000 tokens,
and each policy evicts 750 of them from copies of its cache. Milliseconds are those of the processor
for ranking and moving, the least of several, on one thread: other work on the machine changes them
little. With another commit, both are measured in turns, in processes of their own; policies that
only one of them has are left out.

With `--repeated` a hundredth of the slots is evicted again and again, as under trigger `paper`, in
as many layers and heads as SmolLM2-135M has: 30 layers, 9 query heads, 3 kv heads of 64.
Milliseconds are the median of 30 evictions in a row, from 5,600 slots on a GPU (wall time, bf16)
and from 1,400 on a CPU (of the processor, fp32), and of `integrity_over_reply` for each of them.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

TOKENS, BUDGET, REPEATS, ROUNDS = 1000, 250, 7, 3
REQUIRED: dict[str, dict[str, Any]] = {
    "random": {"keep_ratio": 0.9},
    "sliding_window": {"keep_ratio": 0.9},
    "evict_oldest": {"discard_ratio": 0.1},
    "block": {"which": "middle"},
}
#: Slots at the start, by device, and evictions of a hundredth of them, after some that warm up.
SLOTS, EVICTIONS, WARMUP = {"cpu": 1400, "cuda": 5600}, 30, 3
ROOT = Path(__file__).parents[1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--against", help="a commit; only uniform policies are then compared")
    parser.add_argument("--measure", action="store_true", help="measure here and print JSON")
    parser.add_argument("--uniform", action="store_true", help="leave ragged policies out")
    parser.add_argument("--repeated", action="store_true", help="1%% of the slots, again and again")
    parser.add_argument("--device", choices=tuple(SLOTS), default="cpu", help="with --repeated")
    options = parser.parse_args()
    if options.device != "cpu" and not options.repeated:
        parser.error("--device is for --repeated: other measurements are those of the processor")
    if options.measure:
        found = repeated(options.device) if options.repeated else measured(uniform=options.uniform)
        print(json.dumps(found))
        return
    if options.against is None and options.repeated:
        for kind, found in repeated(options.device).items():
            print(f"{kind:40} {found['ms']:8.2f} ms")
        return
    if options.against is None:
        for kind, found in measured(uniform=options.uniform).items():
            ranking, held = (found[name] / 1e6 for name in ("ranking_bytes", "held_bytes"))
            print(f"{kind:30} {found['ms']:8.1f} ms {ranking:8.2f} MB {held:8.2f} MB")
        return
    chosen = ["--repeated", "--device", options.device] if options.repeated else ["--uniform"]
    compare(options.against, chosen)


def compare(commit: str, chosen: Sequence[str]) -> None:
    """Print the milliseconds of both trees, and their ratio."""
    with tempfile.TemporaryDirectory() as folder:
        other = Path(folder) / "tree"
        git = ["git", "-C", str(ROOT), "worktree"]
        subprocess.run(
            [*git, "add", "--detach", str(other), commit], check=True, capture_output=True
        )
        try:
            rounds = [(in_tree(other, chosen), in_tree(ROOT, chosen)) for _ in range(ROUNDS)]
        finally:
            subprocess.run([*git, "remove", "--force", str(other)], check=True)
    print(f"{'policy':40} {'before':>8} {'now':>8} {'ratio':>6}")
    ratios = []
    for kind in rounds[0][0]:
        if kind in rounds[0][1]:
            before, now = (min(each[side][kind]["ms"] for each in rounds) for side in (0, 1))
            ratios.append(now / before)
            print(f"{kind:40} {before:8.2f} {now:8.2f} {now / before:6.2f}")
    print(f"median ratio of {len(ratios)}: {statistics.median(ratios):.2f}")


def in_tree(tree: Path, chosen: Sequence[str]) -> Any:
    """What this script measures with the library of another folder."""
    environment = os.environ | {"PYTHONPATH": str(tree / "src")}
    command = [sys.executable, __file__, "--measure", *chosen]
    done = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def measured(*, uniform: bool) -> dict[str, dict[str, Any]]:
    """Milliseconds of an eviction, by kind of policy, and bytes where the library tells them."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from kvfidelity.cache.attach import new_cache
    from kvfidelity.cache.evictor import EvictionSchedule, Evictor
    from kvfidelity.cache.hooks import cache_argument
    from kvfidelity.cache.policies import build_policy, known_policies

    torch.set_num_threads(1)
    torch.manual_seed(0)
    sizes = {"vocab_size": 1000, "hidden_size": 72, "intermediate_size": 64, "head_dim": 64}
    heads = {"num_hidden_layers": 4, "num_attention_heads": 9, "num_key_value_heads": 3}
    model = LlamaForCausalLM(LlamaConfig(**sizes, **heads)).eval()
    ids = torch.randint(3, 1000, (1, TOKENS))
    found = {}
    with torch.inference_mode():
        cache = new_cache(model, collect_scores=True, query_window=128)
        if hasattr(cache, "transcript"):
            from kvfidelity.cache.calibration import calibrate
            from kvfidelity.cache.transcript import Transcript

            calibrate(model, range(3, 259))
            cache.transcript = Transcript()
        for part in ids.split(500, dim=1):
            model(part, **{cache_argument(model): cache})
        for kind, policy_class in known_policies().items():
            if not policy_class.evicts or (uniform and getattr(policy_class, "ragged", False)):
                continue
            policy = build_policy(kind, REQUIRED.get(kind, {}))
            schedule, times = EvictionSchedule("turn", TOKENS, BUDGET), []
            for _ in range(REPEATS):
                evictor, copy = Evictor(policy, schedule), cache.fork()
                start = time.process_time()
                evictor.before_turn(copy)
                times.append(time.process_time() - start)
            found[kind] = {"ms": 1000 * min(times)}
            if hasattr(evictor.log[0], "held_bytes"):
                evictor = Evictor(policy, schedule, measures_memory=True)
                evictor.before_turn(cache.fork())
                for name in ("ranking_bytes", "held_bytes"):
                    found[kind][name] = getattr(evictor.log[0], name)
    return found


def repeated(device: str) -> dict[str, dict[str, Any]]:
    """Milliseconds of an eviction of a hundredth of the slots, by policy and position mode."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from kvfidelity.cache.attach import new_cache
    from kvfidelity.cache.evictor import EvictionSchedule, Evictor
    from kvfidelity.cache.hooks import cache_argument
    from kvfidelity.cache.policies import build_policy
    from kvfidelity.cache.positions import PositionMode
    from kvfidelity.metrics.reply_positions import integrity_over_reply

    torch.set_num_threads(1)
    torch.manual_seed(0)
    clock = time.process_time if device == "cpu" else time.perf_counter
    sizes = {"vocab_size": 1000, "hidden_size": 72, "intermediate_size": 64, "head_dim": 64}
    heads = {"num_hidden_layers": 30, "num_attention_heads": 9, "num_key_value_heads": 3}
    model = LlamaForCausalLM(LlamaConfig(**sizes, **heads, max_position_embeddings=8192)).eval()
    model = model.to(device, torch.float32 if device == "cpu" else torch.bfloat16)
    frequencies = 10000.0 ** -(torch.arange(32) / 32)
    policies = {
        "attention_top": ("attention_top", {"keep_ratio": 0.99}),
        "attention_top per head": ("attention_top", {"keep_ratio": 0.99, "granularity": "head"}),
        "random": ("random", {"keep_ratio": 0.99}),
    }
    found = {}
    ids = torch.randint(3, 1000, (1, SLOTS[device]))
    with torch.inference_mode():
        for mode in map(str, PositionMode):
            cache = new_cache(model, mode, collect_scores=True)
            for part in ids.split(700, dim=1):
                model(part.to(device), **{cache_argument(model): cache})
            for name, (kind, parameters) in policies.items():
                policy = build_policy(kind, parameters)
                evictor, copy = Evictor(policy, EvictionSchedule("paper", 10)), cache.fork()
                before, times = copy.slot_table.fork(), []
                for _ in range(WARMUP + EVICTIONS):
                    start = clock()
                    evictor.before_step(copy)  # it waits for the device at its end
                    times.append(clock() - start)
                    token = torch.full((1, 1), 5, device=device)
                    model(token, **{cache_argument(model): copy})
                    if device == "cuda":
                        torch.cuda.synchronize()
                found[f"{name}, {mode}"] = {"ms": 1000 * statistics.median(times[WARMUP:])}
                seen, start = copy.slot_table.tokens_seen, clock()
                integrity_over_reply(before, evictor.log, seen, frequencies, 8192)
                milliseconds = 1000 * (clock() - start) / len(evictor.log)
                found[f"{name}, {mode}: integrity"] = {"ms": milliseconds}
    return found


if __name__ == "__main__":
    main()
