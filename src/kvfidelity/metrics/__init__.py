"""What is measured: integrity of positions, likelihoods, and properties of a reply's text.

`positions` needs positions only, `likelihood` needs logits, `text` needs two strings.
"""
