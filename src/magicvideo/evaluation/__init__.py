"""Scores with their protocol: metrics, the judge that some of them need, and the reports."""
