"""The one exception that stands for a user's mistake."""

import errno
import sys
from collections.abc import Callable

# What the system says of a disk or a path that the user chose, not of a fault in the program.
_OF_THE_SYSTEM = (
    errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR,
    errno.EISDIR, errno.EEXIST,
)


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
    except OSError as error:
        if error.errno not in _OF_THE_SYSTEM:
            raise
        where = f"{error.filename}: " if error.filename else ""
        remedy = "Choose another folder, or mend this and start the same command again"
        print(f"error: {where}{error.strerror}. {remedy}", file=sys.stderr, flush=True)
        code = 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr, flush=True)
        code = 130
    sys.exit(code or 0)
