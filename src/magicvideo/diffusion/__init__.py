"""Noise, loss and sampling, as functions of tensors and callables; no networks."""
