"""Triton kernels for CUDA devices, and the state of a captured decode step on the device.

- `prefill`     rotates, attends and sums scores for many queries
- `decode`      does all three for one query per sequence; rotates keys as it reads them
- `compact`     moves the survivors of an eviction to the front of every buffer
- `step_table`  what `decode` needs to know about its caches; `layout` names its numbers

A CPU uses `cache.attention` and `cache.rotary` instead, which are also the reference in tests.
"""
