"""The one error that users see: a sentence that names the value, what is allowed and what to do."""


class UserError(ValueError):
    """A mistake that the user can mend.

    Its message is one sentence for people. The command line prints it without a traceback and
    exits with code 2; the library raises it like any `ValueError`.
    """


class ClipError(Exception):
    """A clip that cannot be used; the message is the reason, worded to follow "skipped: "."""
