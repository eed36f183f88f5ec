"""Shared prefixes: the part of a run before its first eviction, the same for all cells.

`baseline_run` is the run that the others are forked from, `cache` keeps the latest in memory,
`disk_cache` keeps them on disk, `serialize` converts one to tensors and back, and `tensor_file`
writes the tensors.
"""
