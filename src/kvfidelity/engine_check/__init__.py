"""Is an inference engine's eviction right? A check that any engine can take.

- `bookkeeping`  the ways to keep positions: modes and known faults, as integers
- `schedules`    which tokens survive when
- `expected`     what the core answers under each bookkeeping
- `make`         a model's probe set, made of the three
- `probes`       its file
"""
