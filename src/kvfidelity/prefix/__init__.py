"""Shared prefixes: the part of a run before its first eviction, the same for all cells.

`cache` keeps the latest baselines in memory, `disk_cache` keeps them on disk, `serialize` converts
one to tensors and back, and `tensor_file` writes the tensors. The baseline itself, and how a run is
forked from it, is in `generation`.
"""
