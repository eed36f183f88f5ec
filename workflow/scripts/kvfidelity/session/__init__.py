"""One dialogue through one model, the cache living across turns.

`engine` feeds tokens, `decode` generates, `turns` walks through a dialogue, `prefix` shares what
runs have in common before their first eviction, `run` puts a cell of the grid together, `rows`
says what is recorded; `recall` asks what was said long ago, `interview` when. What does not live
here: files, Snakemake, tokenisation rules.
"""
