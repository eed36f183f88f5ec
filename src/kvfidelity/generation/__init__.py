"""One dialogue through one model, the cache living across turns.

`engine` feeds tokens, `generate` generates, `turns` walks through a dialogue, `prefix` shares what
runs have in common before their first eviction, `run` puts a cell of the grid together, `rows`
says what is recorded; `recall` asks what was said long ago, `recall_prober` when. A reply in the
making is a `sequence`; its steps are run as they come (`steps_eager`) or captured on a GPU
(`steps_cudagraph`); `scheduler` decodes the replies of several runs in one batch. What does not
live here: artifacts, Snakemake, tokenisation rules.
"""
