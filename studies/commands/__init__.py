"""The commands of `python -m studies`, one module each."""
