"""Benchmarks on public data sets, next to published results."""
