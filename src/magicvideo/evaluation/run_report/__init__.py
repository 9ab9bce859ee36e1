"""The HTML report of a run: training curves, samples, settings and results."""
