"""What is measured: positional integrity, likelihoods, and properties of a reply's text.

`integrity` needs positions only, `quality` needs logits, `text` needs two strings.
"""
