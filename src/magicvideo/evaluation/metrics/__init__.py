"""What is computed of features and of pixels: one measure a module, in float64."""
