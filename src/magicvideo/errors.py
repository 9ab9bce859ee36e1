"""Errors for users: one sentence with the value, the allowed values and what to do."""


class UserError(ValueError):
    """An error that the user can fix.

    Its message is one sentence. The command line prints it without traceback and exits with code 2;
    in Python it is a `ValueError`.
    """


class ClipError(Exception):
    """A clip that cannot be used; the message is a reason that follows "skipped: "."""
