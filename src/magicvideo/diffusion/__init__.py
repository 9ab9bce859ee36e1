"""The mathematics of diffusion on tensors and callables; it knows no network."""
