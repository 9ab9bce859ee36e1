"""Where clips come from: one module a source, each of which yields candidates for preparation."""
