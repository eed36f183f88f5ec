"""Is an inference engine's eviction right? A check that any engine can take.

What to expect, with the core in fp32:

- `bookkeeping`   the ways to keep positions, modes and known faults, as integers
- `engine_table`  one of them applied to a cache of the core
- `schedules`     which tokens survive when
- `expected`      what the core answers under each bookkeeping
- `make`          a model's probe set
- `replay`        the same for runs whose keep sets an engine chose; `rules` plays documented rules

What an engine answered, without PyTorch:

- `probes`        the file of a probe set
- `answers`       the file of an engine's answers
- `verdict`       the bookkeeping that fits best, and whether it fits; `drift` over evictions
- `message`       the verdict in five lines; `figure` draws it
- `command`       `kvfidelity check`
"""
