"""Replies token by token: the engine, batches of sequences, CUDA graphs, sampling."""
