"""Triton kernels for CUDA devices, and the device-side state of a captured decode step.

`prefill` rotates, attends and sums scores over many queries; `decode` does all three for one query
per sequence, rotating keys as it reads them; `step_table` holds what `decode` needs to know as
device data. Nothing here is imported on a CPU: `cache.attention` is the reference and the CPU path.
"""
