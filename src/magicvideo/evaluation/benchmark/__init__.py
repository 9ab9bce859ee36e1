"""Scores on data sets of others, beside what was published for them."""
