"""Metrics of features and pixels, computed in float64."""
