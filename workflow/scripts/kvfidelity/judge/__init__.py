"""Verdicts from 1 to 10 on a model's own replies; a verdict that failed is missing, never a number.

`offline` computes one from measured quantities. What does not live here: the measuring, and torch.
"""
