"""What is told of long work, and how often."""

import io
import logging
import math

import pytest

from snr_jax.core import progress
from tests.commands import said


@pytest.mark.parametrize(
    "seconds, text",
    [(0, "0 s"), (59.4, "59 s"), (59.6, "1 min 00 s"), (130, "2 min 10 s"),
     (3600, "1 h 00 min"), (11100, "3 h 05 min"), (math.inf, "?"), (math.nan, "?")],
)  # fmt: skip
def test_durations(seconds, text):
    assert progress.format_duration(seconds) == text


@pytest.mark.parametrize(
    "done, total, rate, text",
    [
        (120, 800, 3.4, "step 120/800, 3.4/s, 3 min 20 s left"),
        (8, 10, 0.25, "step  8/10, 4.0 s each, 8 s left"),
        (0, 10, 0.0, "step  0/10, 0.0/s, ? left"),
        (10, 10, 1.0, "step 10/10, 1.0/s, 0 s left"),
    ],
)
def test_text(done, total, rate, text):
    assert progress.progress_text("step", done, total, rate) == text


def shown(show, clock, times):
    for done, seconds in enumerate(times, start=1):
        clock[0] = seconds
        show(done, len(times))


def test_lines_come_now_and_then_and_at_the_end():
    clock = [100.0]
    with said() as lines:
        logger = logging.getLogger("snr_jax.some.room")
        show = progress.make_progress("images", logger, clock=lambda: clock[0])
        shown(show, clock, [101, 109.9, 110, 119, 120, 121])
    assert lines == [
        "images 3/6, 3.3 s each, 10 s left",
        "images 5/6, 4.0 s each, 4 s left",
        "images 6/6, 3.5 s each, 0 s left",
    ]


@pytest.mark.parametrize("terminal, texts", [(True, [1, 2, 3, 4]), (False, [4])])
def test_a_terminal_sees_one_line_that_changes(monkeypatch, terminal, texts):
    stderr, clock = io.StringIO(), [0.0]
    stderr.isatty = lambda: terminal
    monkeypatch.setattr("sys.stderr", stderr)
    shown(progress.make_progress("images", clock=lambda: clock[0]), clock, [1, 2, 3, 4])
    lines = stderr.getvalue().replace("\r", "\n").split("\n")[:-1]
    assert [int(line[7]) for line in lines] == texts
    assert stderr.getvalue().count("\r") == (3 if terminal else 0)


def test_the_log_is_on_the_terminal_within_a_command_alone(capsys):
    logger = logging.getLogger("snr_jax.some.room")
    logger.warning("before")
    with progress.log_on_terminal():
        logger.info("a line")
        logger.warning("a folder is odd")
    logger.warning("after")
    assert capsys.readouterr() == ("a line\nWARNING: a folder is odd\n", "")
