"""What a process says when another process of its run is gone: one line, not a C++ stack trace.

JAX aborts a process whose run has lost another one, from a C++ thread, with a page of messages.
So the messages of a run of several processes go through a process of this program, which outlives
the abort: it passes lines on, and keeps back what JAX's coordination service says until the
process goes on or ends.
"""

import os
import re
import select
import signal
import subprocess
import sys

# JAX's log lines about other processes; all that follows the first belongs to it or to the end.
COORDINATION = re.compile(
    rb"[IWEF]\d{4} [\d:.]+ +\d+ (coordination_|preemption_|client\.h|distributed|grpc|add_port)"
)
# The run tells of it itself.
NOISE = re.compile(rb"W\d{4} .* preemption_notifier\S+ SIGTERM caught")
FATAL = b"distributed service detected fatal errors"
GONE = (
    "error: another process of this run has ended or cannot be reached (its own messages say "
    "why). Start the same command again in every process to go on from the last checkpoint"
)
ABSENT = (
    "error: not all processes of this run appeared in time. Start as many as --num_processes, "
    "each with its own --process_id and the same --coordinator, reachable from all"
)
QUIET_SECONDS = 10.0  # a process that goes on for so long was not ending


def redirect_stderr() -> None:
    """Sends what this process, C++ included, writes to stderr through `main`."""
    program = subprocess.Popen(
        [sys.executable, "-I", "-S", __file__],  # the standard library is all it needs
        stdin=subprocess.PIPE, start_new_session=True,  # Ctrl-C is not for it
    )
    os.dup2(program.stdin.fileno(), 2)
    program.stdin.close()
    program.returncode = 0  # nobody waits for it: it ends after this process


def last_words(held: list[bytes]) -> bytes:
    """What is told of the lines kept back when the process has ended."""
    text = b"".join(held)
    errors = [line for line in held if line.startswith(b"error: ")]
    if errors:
        return errors[0]
    if FATAL not in text:
        return text
    absent = b"RegisterTask" in text or b"PjRT_Client_Connect" in text
    return f"{ABSENT if absent else GONE}\n".encode()


def main() -> int:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    held: list[bytes] = []
    rest = b""
    while True:
        ready, _, _ = select.select([0], [], [], QUIET_SECONDS if held else None)
        if not ready:
            os.write(2, b"".join(held))
            held.clear()
            continue
        piece = os.read(0, 65536)
        *lines, rest = (rest + piece).splitlines(keepends=True) or [b""]
        if rest.endswith(b"\n") or not piece:
            lines, rest = [*lines, rest], b""
        for line in lines:
            if NOISE.match(line):
                continue
            if held or COORDINATION.match(line):
                held.append(line)
            else:
                os.write(2, line)
        if not piece:
            os.write(2, last_words(held))
            return 0


if __name__ == "__main__":
    sys.exit(main())
