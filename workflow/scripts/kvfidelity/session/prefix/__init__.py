"""What all policies of one dialogue share: the run that never evicts.

`full` is such a run, `bank` remembers the latest, `shelf` keeps them on disk, as `snapshot` takes
them apart and `tensorfile` writes them down.
"""
