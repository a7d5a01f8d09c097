"""The one exception that stands for a user's mistake."""

class UserError(Exception):
    """Bad input. The message names the file, key or value, what was expected, and the remedy.

    Command lines print it without a traceback and exit with code 2.
    """
