"""From artifacts to tables and claims.

`tables` gathers all artifacts, `columns` declares every column, `statistics` estimates means and
intervals, `claims` tests statements on the tables. The other modules make one table each.

Not here: torch, models, figures and the report (`report`).
"""
