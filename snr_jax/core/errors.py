"""The exceptions whose message is for the user: one line, without a traceback."""

import signal


class UserError(Exception):
    """Bad input. The message names the file, key or value, what was expected, and the remedy.

    Command lines print it and exit with code 2.
    """


class Stopped(Exception):
    """A run has stopped before its end. Command lines print the message and exit with its code."""

    def __init__(self, message: str, exit_code: int):
        super().__init__(message)
        self.exit_code = exit_code

    @classmethod
    def by(cls, asked: signal.Signals, message: str) -> "Stopped":
        """Tells of a signal that has asked for it."""
        return cls(f"{asked.name}: {message}", 128 + asked)
