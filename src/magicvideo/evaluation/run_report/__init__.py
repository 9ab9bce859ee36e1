"""One page about a run: curves of its log, its samples, its settings and the results on it."""
