"""What is written down.

`columns` declares the columns of the artifacts, `frames` builds them, `artifacts` writes and reads
the files, `grid` lists the runs of a configuration.
"""
