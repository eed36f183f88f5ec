"""What the Snakefile needs.

`settings` checks the configuration, `rule_params` gives each rule its part, `code_digest` says
whether code has changed, `resources` estimates time and memory. `verify` and `staleness` check
results, `merge` puts results of several places together.
"""
