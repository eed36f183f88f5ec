"""Verdicts from 1 to 10 on a model's own replies; a verdict that failed is missing, never a number.

`offline` computes one from measured quantities, `remote` and `pairwise` ask a model. What they ask
goes out through `live` or `batch` and is kept in `store`. `planting` and `trial` test the judges
themselves. What does not live here: the measuring, and torch.
"""
