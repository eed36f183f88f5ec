"""What is written down: columns, artifacts, the keys of runs."""
