"""What all policies of one dialogue share: the run that never evicts.

`baseline_run` is such a run, `cache` remembers the latest, `disk_cache` keeps them on disk, as
`serialize` takes them apart and `tensor_file` writes them down.
"""
