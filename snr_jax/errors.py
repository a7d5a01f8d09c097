"""The one exception that stands for a user's mistake."""

import sys
from collections.abc import Callable


class UserError(Exception):
    """Bad input. The message names the file, key or value, what was expected, and the remedy.

    Command lines print it without a traceback and exit with code 2.
    """


def run_command(command: Callable[[], int | None]) -> None:
    """Runs a command line and exits: with its code, 2 after a UserError, 130 after Ctrl-C."""
    try:
        code = command()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        code = 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr, flush=True)
        code = 130
    sys.exit(code or 0)
