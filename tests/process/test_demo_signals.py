"""The demo and the study end cleanly wherever a signal meets them, in processes of their own."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

ROOT = Path(__file__).resolve().parents[2]
SCRIPTS = ("demo.py", "study.py")


@pytest.fixture
def script():
    """script(name, out) → a script in a session of its own, killed with its workers at the end."""
    started = []

    def start(name: str, out: Path) -> subprocess.Popen:
        started.append(
            subprocess.Popen(
                [sys.executable, str(ROOT / "scripts" / name), "--out", str(out)], text=True,
                env={**os.environ, "PYTHONPATH": str(ROOT)}, start_new_session=True,
                stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            )
        )
        return started[-1]

    yield start
    for one in started:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(one.pid, signal.SIGKILL)
        one.communicate()


def wait(for_what) -> None:
    until = time.monotonic() + 300
    while not for_what():
        assert time.monotonic() < until
        time.sleep(0.01)


def wait_until_none_is_left(session: int) -> None:
    """A process that has ended stays listed until somebody asks how."""

    def none_is_left() -> bool:
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.NoSuchProcess, ProcessLookupError):
                ended = process.status() == psutil.STATUS_ZOMBIE
                if os.getsid(process.pid) == session and not ended:
                    return False
        return True

    wait(none_is_left)


def is_drawing(out: Path):
    return lambda: any((out / "data/GTA5.partial").rglob("*.png"))


def ends(running: subprocess.Popen, asked: signal.Signals) -> str:
    """The last line of stderr; before it a word at most, where the end takes a while."""
    _, err = running.communicate(timeout=300)
    assert running.returncode == 128 + asked, err
    *before, last = err.splitlines()
    assert all(line.startswith(f"{asked.name}: stopping as soon as") for line in before), err
    wait_until_none_is_left(running.pid)
    return last


@pytest.mark.parametrize("name", SCRIPTS)
@pytest.mark.parametrize("asked", [signal.SIGINT, signal.SIGTERM])
def test_while_drawing(name, asked, script, tmp_path):
    """Sent to the workers as well, as a terminal sends Ctrl-C and `timeout` SIGTERM."""
    running = script(name, tmp_path)
    wait(is_drawing(tmp_path))
    os.killpg(running.pid, asked)
    line = ends(running, asked)
    assert line.startswith(f"{asked.name}: stopped while drawing {tmp_path / 'data' / 'GTA5'};")
    assert list((tmp_path / "data").iterdir()) == []


@pytest.mark.parametrize("name", SCRIPTS)
def test_while_importing(name, script, tmp_path):
    running = script(name, tmp_path)
    maps = Path(f"/proc/{running.pid}/maps")
    wait(lambda: "jaxlib" in maps.read_text())
    running.send_signal(signal.SIGINT)
    assert ends(running, signal.SIGINT).startswith("SIGINT: stopped while drawing")
    assert not (tmp_path / "data").exists()


def test_no_worker_outlives_a_killed_process(script, tmp_path):
    running = script("demo.py", tmp_path)
    wait(is_drawing(tmp_path))
    running.kill()
    running.wait()
    wait_until_none_is_left(running.pid)
