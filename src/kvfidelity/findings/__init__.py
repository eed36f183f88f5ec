"""The findings: which runs answer which question, their small tables in `docs/findings/`, and the
page `docs/findings.md`, which is generated from those tables alone.

`plan` names the runs, `exported` what of their tables is published, `export` writes it, `page` and
the modules that it imports write the page.
"""
