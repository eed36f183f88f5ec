"""One run: a cell of the grid on one dialogue, from a specification to tables.

`spec` is what a run depends on. `plan` prepares it: turns, token ids, policy, questions. `run` is
the loop over turns: it takes the turns before the first eviction from the `baseline`, and computes
the others on a fork of its cache (`baseline_run`). `turns` feeds one turn and measures it;
`timed_turn` adds progress and out-of-memory. `comparison` compares a turn with the baseline,
`turn_row` makes its row. `recall` asks about earlier messages, `recall_prober` decides when.
`likelihood` scores given replies.

Not here: decoding (`decoding`), sharing of baselines (`prefix`), files and jobs (`worker`).
"""
