"""What is measured: positional integrity, likelihoods, and properties of a reply's text.

`positions` needs positions only, `likelihood` needs logits, `text` needs two strings.
"""
