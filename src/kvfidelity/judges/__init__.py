"""Verdicts from 1 to 10 on a model's own replies; a verdict that failed is missing, never a number.

`kinds` holds one file per judge kind; `registry` finds them. `llm` and `pairwise` turn replies into
requests to a model, `online` or `batch` sends them, and `store` keeps every answer. `corruptions`
and `reliability` test the judges themselves. Measuring is done elsewhere, and nothing here imports
torch.
"""
