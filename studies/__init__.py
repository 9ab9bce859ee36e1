"""Studies that reproduce the paper from a clone: they are not part of the installed package."""

PROGRAM = ("python", "-m", "studies")
