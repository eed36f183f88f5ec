"""Cache sizes in tokens and bytes for a model.

    python -m kvfidelity.pipeline.cache_sizes resources/models/smollm2-135m --dtype float32 600MB
    python -m kvfidelity.pipeline.cache_sizes --layers 32 --kv-heads 8 --head-size 128 --window 8192

The second form needs no model: its numbers are those of Llama-3-8B. The default dtype is bfloat16.
"""

import argparse
from pathlib import Path

from kvfidelity.cli import main_guard
from kvfidelity.models.geometry import BYTES, Geometry
from kvfidelity.sizes import size_in_tokens

SIZES = ("600MB", "600MiB", "700MiB", "0.7win", "1win")


def table(geometry: Geometry, dtype: str, sizes: list[str]) -> str:
    """One line per size: tokens, bytes, share of the trained window."""
    token_bytes = geometry.token_bytes(dtype)
    lines = [
        f"2 x {geometry.layers} layers x {geometry.kv_heads} kv heads x {geometry.head_size} "
        f"x {BYTES[dtype]} bytes = {token_bytes:,} bytes per token, {geometry.window:,} tokens of "
        "window",
        f"{'size':>10} {'tokens':>8} {'bytes':>15} {'window':>7}",
    ]
    for size in sizes:
        tokens = size_in_tokens(size, token_bytes=token_bytes, window=geometry.window)
        share = tokens / geometry.window
        lines.append(f"{size:>10} {tokens:>8,} {tokens * token_bytes:>15,} {share:>6.0%}")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", nargs="?", type=Path, help="model directory")
    parser.add_argument("sizes", nargs="*", default=list(SIZES))
    parser.add_argument("--dtype", default="bfloat16", choices=list(BYTES))
    parser.add_argument("--layers", type=int, default=32)
    parser.add_argument("--kv-heads", type=int, default=8)
    parser.add_argument("--head-size", type=int, default=128)
    parser.add_argument("--window", type=int, default=8192)
    options = parser.parse_intermixed_args()
    if options.model is None:
        geometry = Geometry(options.layers, options.kv_heads, options.head_size, options.window)
    else:
        geometry = Geometry.of(options.model)
    print(table(geometry, options.dtype, options.sizes or list(SIZES)))


if __name__ == "__main__":
    main_guard(main)
