"""KV Fidelity: what happens to a chat when an LLM's KV cache is evicted.

One folder per idea, imports pointing one way:

- `dialogues`  where conversations come from, how they are cleaned, selected and turned into tokens
- `models`     where weights come from, how they are converted and loaded
- `cache`      slots, positions, policies, triggers, attention scores
- `session`    one dialogue through one model, the cache living across turns
- `worker`     a warm process that keeps the model loaded between jobs
- `metrics`    integrity of positions, quality of replies
- `judge`      verdicts from 1 to 10
- `analysis`   tables, statistics, figures, report

This module imports nothing, so that a Snakefile can import the package in milliseconds.
"""
