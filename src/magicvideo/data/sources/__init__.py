"""Sources of clips: one module for each layout of data sets, which returns a `Source`."""
