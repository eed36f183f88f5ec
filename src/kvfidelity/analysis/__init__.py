"""From artifacts to conclusions: `tables` gathers, `statistics` estimates, `figures` draws,
`page` writes the report. What does not live here: torch, models, running anything again.
"""
