"""From tables to the report.

`page` writes it, `figure_registry` lists its figures, `transcripts` prepares the replies that it
shows, `formatting` writes numbers. `compare` compares two results folders.
"""
