"""Verdicts from 1 to 10 on a model's own replies; a verdict that failed is missing, never a number.

`formula` computes one from measured quantities, `llm` and `pairwise` ask a model. What they ask
goes out through `online` or `batch` and is kept in `store`. `corruptions` and `reliability` test
the judges themselves. What does not live here: the measuring, and torch.
"""
