"""The exceptions whose message is for the user: one line, without a traceback."""

import difflib
import signal
from collections.abc import Iterable


class UserError(Exception):
    """Bad input. The message names the file, key or value, what was expected, and the remedy.

    Command lines print it and exit with code 2.
    """


def guess(name: object, known: Iterable[str]) -> str:
    """ ". Did you mean 'x'?" for the end of a message, where a known name is near; else ""."""
    near = difflib.get_close_matches(str(name).lower(), known, n=1)
    return f". Did you mean {near[0]!r}?" if near else ""


class Stopped(Exception):
    """A run has stopped before its end. Command lines print the message and exit with its code."""

    def __init__(self, message: str, exit_code: int):
        super().__init__(message)
        self.exit_code = exit_code

    @classmethod
    def by(cls, asked: signal.Signals, message: str) -> "Stopped":
        """Tells of a signal that has asked for it."""
        return cls(f"{asked.name}: {message}", 128 + asked)
