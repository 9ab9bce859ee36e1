"""Benchmarks on public data sets, beside published results."""
