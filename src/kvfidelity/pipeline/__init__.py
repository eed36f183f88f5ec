"""What the Snakefile needs: settings, rule parameters, digests of code, estimates, merging,
checks."""
