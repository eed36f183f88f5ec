"""Weights: where they come from, how they are converted once, how they are loaded."""
