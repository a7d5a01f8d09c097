"""How runs begin, part and end: signals, the lock of a folder, several processes."""

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from snr_jax import main
from snr_jax.core.errors import UserError
from snr_jax.process import several, signals
from snr_jax.runs import network
from snr_jax.workdir import checkpoints, lock
from tests.core.tiny import assert_trees_close

ROOT = Path(__file__).resolve().parents[2]
DG, UDA = "configs/gta5_dg.py", "configs/gta2city_uda.py"


@pytest.fixture
def program():
    """program(code) → a Python process that has written its first line; it is killed at the end."""
    started = []

    def start(code: str) -> subprocess.Popen:
        one = subprocess.Popen(
            [sys.executable, "-u", "-c", code], cwd=ROOT, text=True,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )
        started.append(one)
        assert one.stdout.readline() == "ready\n", one.communicate()
        return one

    yield start
    for one in started:
        one.kill()
        one.communicate()


# ---------------------------------------------------------------- signals


def test_second_signal_ends_a_process_that_python_cannot_interrupt(program):
    """As in a compilation: the main thread is in C, where no handler of Python's runs, unlocked."""
    running = program(
        "import hashlib\nfrom snr_jax.process import signals\n"
        "with signals.on_signals():\n"
        "    print('ready')\n    hashlib.pbkdf2_hmac('sha256', b'x', b'y', 2**31 - 1)"
    )
    running.send_signal(signal.SIGINT)
    assert running.stderr.readline().startswith("SIGINT: stopping as soon as the compilation")
    assert running.poll() is None
    running.send_signal(signal.SIGINT)
    _, err = running.communicate(timeout=60)
    assert running.returncode == 130 and err.startswith("SIGINT once more: ended at once")
    assert err.count("\n") == 1


def test_signal_sent_twice_at_once_is_one_request(program):
    """`timeout` does so."""
    running = program(
        "import time\nfrom snr_jax.process import signals\n"
        "with signals.on_signals() as stop:\n    print('ready')\n"
        "    while not stop(): time.sleep(0.01)\n    time.sleep(0.3)\n    print(stop().name)"
    )
    running.send_signal(signal.SIGTERM)
    time.sleep(0.05)
    running.send_signal(signal.SIGTERM)
    assert running.communicate(timeout=60) == ("SIGTERM\n", "") and running.returncode == 0


def test_handlers_are_taken_back_and_ignored_signals_stay_ignored():
    before = signal.getsignal(signal.SIGINT), signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        with signals.on_signals() as stop:
            assert signal.getsignal(signal.SIGINT) != before[0]
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(0.1)
            assert stop() is None
        assert signal.getsignal(signal.SIGINT) == before[0]
        assert signal.getsignal(signal.SIGTERM) == signal.SIG_IGN
        assert signal.set_wakeup_fd(-1) == -1
    finally:
        signal.signal(signal.SIGTERM, before[1])


@pytest.mark.parametrize("asked", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_signal_when_nothing_is_left_to_stop(asked, command, train_flags, tmp_path, monkeypatch):
    """The run is whole, but `train && adapt` must not go on."""
    def finish(config, workdir, stop, profile_dir, lengthen):
        os.kill(os.getpid(), asked)
        while stop() is None:
            time.sleep(0.01)

    monkeypatch.setattr(main, "train", finish)
    result = command("main", *train_flags(DG, tmp_path / "run"))
    line = f"{asked.name}: the run had come to its end, which is saved\n"
    assert (result.code, result.err) == (128 + asked, line)


def test_a_terminal_that_closes(process, train_flags, tmp_path):
    """Its output goes nowhere any more, and the state is saved; under nohup the run goes on."""
    arguments = train_flags(DG, tmp_path / "run", LONG)
    running = process("main", *arguments)
    wait_for_steps(tmp_path / "run", [running])
    running.stdout.close()
    running.send_signal(signal.SIGHUP)
    err = running.stderr.read()
    assert running.wait(timeout=300) == 129
    (saved,) = (int(path.name) for path in checkpoints.folder(tmp_path / "run", "latest").iterdir())
    assert err == f"SIGHUP: step {saved} is saved; the same command goes on from there\n"
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # which a process inherits
    try:
        with signals.on_signals() as stop:
            os.kill(os.getpid(), signal.SIGHUP)
            time.sleep(0.1)
            assert stop() is None
    finally:
        signal.signal(signal.SIGHUP, before)


def test_ctrl_c_while_the_libraries_are_imported(process, train_flags, tmp_path):
    running = process("main", *train_flags(DG, tmp_path / "run"))
    while "jaxlib" not in Path(f"/proc/{running.pid}/maps").read_text():
        assert running.poll() is None
    running.send_signal(signal.SIGINT)
    out, err = running.communicate(timeout=300)
    assert (running.returncode, out, err) == (-signal.SIGINT, "", "")
    assert not (tmp_path / "run").exists()


# ---------------------------------------------------------------- the lock


def test_second_run_in_a_folder_is_refused(program, refused, generalised, tmp_path):
    workdir = tmp_path / "run"
    first = program(
        "import time\nfrom snr_jax.workdir import lock\n"
        f"with lock.locked({str(workdir)!r}):\n    print('ready')\n    time.sleep(600)"
    )
    error = refused("main", *generalised.arguments_in(workdir))
    assert f"{workdir} is in use by a run on {socket.gethostname()}, process {first.pid}" in error
    assert time.strftime("since %Y-%m-%d") in error and "choose another --workdir" in error
    assert [path.name for path in workdir.iterdir()] == [lock.LOCK_FILE]
    with pytest.raises(UserError), lock.locked(workdir):
        pass
    first.kill()
    first.wait()
    with lock.locked(workdir, token="mine"):
        assert lock.LOCK_FILE in os.listdir(workdir)
    assert lock.read(workdir)["token"] == "mine"


def test_an_error_ends_the_process_whatever_its_threads_wait_for(program):
    """As those of a save that has failed, for minutes."""
    running = program(
        "import threading, time\nfrom snr_jax.process import several\n"
        "threading.Thread(target=time.sleep, args=(600,)).start()\n"
        "print('ready')\nseveral.end(2)"
    )
    running.communicate(timeout=60)
    assert running.returncode == 2


# ---------------------------------------------------------------- a run that has not finished


def test_initial_values_of_an_unfinished_run(generalised, refused, train_flags, tmp_path):
    """Not by the name of the run, but by that of one of its checkpoints."""
    unfinished = tmp_path / "unfinished"
    shutil.copytree(generalised.workdir, unfinished)
    shutil.rmtree(checkpoints.folder(unfinished, "final"))
    newest = checkpoints.folder(unfinished, "latest") / "20"
    for named in (unfinished, unfinished / "checkpoints"):
        error = refused("main", *train_flags(UDA, tmp_path / "w", {"init_from": named}))
        assert f"{named} is a run that has not finished" in error
        assert f"--config.init_from={newest}" in error
    model, want, _ = network.load(str(newest))
    found = network.initialize(model, 0, f"{newest}/")
    assert (found["params"]["conv1"]["kernel"] == want["params"]["conv1"]["kernel"]).all()


# ---------------------------------------------------------------- several processes


@pytest.mark.parametrize(
    "flags, words",
    [
        (("--num_processes=2",), "--num_processes without --coordinator"),
        (("--process_id=0",), "--process_id without --coordinator"),
        (("--coordinator=h:1", "--process_id=0"), "--coordinator without --num_processes"),
        (("--coordinator=h:1", "--num_processes=2"), "--coordinator without --process_id"),
        (("--coordinator=127.0.0.1:1", "--num_processes=2", "--process_id=2"), "expected 0 to 1"),
        (("--coordinator=127.0.0.1:1", "--num_processes=2", "--process_id=-1"), "expected 0 to 1"),
        (("--coordinator=nonsense", "--num_processes=2", "--process_id=0"), "'nonsense'"),
        (("--coordinator=host:port", "--num_processes=2", "--process_id=0"), "'host:port'"),
        (("--coordinator=:1234", "--num_processes=2", "--process_id=0"), "':1234'"),
        (("--coordinator=h:99999", "--num_processes=2", "--process_id=0"), "'h:99999'"),
        (("--coordinator=h..:1", "--num_processes=2", "--process_id=0"), "'h..' is not found"),
        (("--coordinator=no.invalid:1", "--num_processes=2", "--process_id=1"),
         "the host 'no.invalid' is not found"),
    ],
)  # fmt: skip
def test_mistaken_flags_of_several_processes(flags, words, refused, train_flags, tmp_path):
    assert words in refused("main", *train_flags(DG, tmp_path / "w"), *flags)
    assert list(tmp_path.iterdir()) == []


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture
def pair(process, train_flags):
    """pair(workdirs, ids, {key: value}) → processes of one run of two."""

    def start(workdirs, ids=(0, 1), overrides=None, *flags) -> list[subprocess.Popen]:
        port = free_port()
        return [
            process("main", *train_flags(DG, workdirs[i], overrides), "--num_processes=2",
                    f"--coordinator=127.0.0.1:{port}", f"--process_id={i}", *flags)
            for i in ids
        ]

    return start


LONG = {"num_steps": 5000, "optimizer.schedule_steps": 5000, "eval_every_steps": 5000,
        "checkpoint_every_steps": 5000}  # fmt: skip


# At the rate of the other tests rounding in the sixth digit grows to the third within three steps,
# at 1e-3 within four; here it stays in the sixth.
SLOWLY = {"optimizer.base_rate": 1e-4}


def said(out: str) -> str:
    """Without the lines of the library of the processes' exchange on a CPU."""
    return "".join(line for line in out.splitlines(True) if not line.startswith("[Gloo]"))


def wait_for_steps(workdir: Path, processes) -> None:
    metrics = workdir / "metrics.jsonl"
    wait_until(lambda: metrics.exists() and metrics.read_text().count("\n") >= 2, processes)


def wait_until(condition, processes) -> None:
    end = time.monotonic() + 300
    while not condition():
        assert all(one.poll() is None for one in processes), [p.communicate() for p in processes]
        assert time.monotonic() < end
        time.sleep(0.01)


def listens_on(pid: int) -> set[str]:
    """The addresses, in hexadecimal, of the sockets on which a process listens."""
    inodes = set()
    for link in Path(f"/proc/{pid}/fd").iterdir():
        try:
            inodes.add(os.readlink(link).removeprefix("socket:[").removesuffix("]"))
        except OSError:
            continue
    rows = [line.split() for name in ("tcp", "tcp6")
            for line in Path(f"/proc/{pid}/net/{name}").read_text().splitlines()[1:]]
    return {row[1].split(":")[0] for row in rows if row[3] == "0A" and row[9] in inodes}


def test_sigterm_to_one_of_two_stops_both_at_the_same_step(pair, tmp_path):
    workdir = tmp_path / "run"
    both = pair([workdir] * 2, overrides=LONG)
    wait_for_steps(workdir, both)
    both[1].send_signal(signal.SIGTERM)
    errors = [one.communicate(timeout=300)[1] for one in both]
    assert [one.returncode for one in both] == [143, 143], errors
    (saved,) = (int(path.name) for path in checkpoints.folder(workdir, "latest").iterdir())
    assert saved >= 2
    assert errors == [f"SIGTERM: step {saved} is saved; the same command goes on from there\n"] * 2
    # Going on, and asked to stop before the first step.
    before = lock.read(workdir)["token"]
    both = pair([workdir] * 2, overrides=LONG)
    while lock.read(workdir).get("token") in (None, before):
        assert all(one.poll() is None for one in both)
    both[0].send_signal(signal.SIGTERM)
    errors = [one.communicate(timeout=300)[1] for one in both]
    assert [one.returncode for one in both] == [143, 143], errors
    line = f"SIGTERM: step {saved + 1} is saved; the same command goes on from there\n"
    assert errors == [line] * 2


def test_ctrl_c_of_two_and_sigterm_after_the_last_step(pair, tmp_path):
    """As a terminal sends it to all; and what follows in a shell must not begin."""
    workdir = tmp_path / "run"
    both = pair([workdir] * 2, overrides=LONG)
    wait_for_steps(workdir, both)
    for one in both:
        one.send_signal(signal.SIGINT)
    errors = [one.communicate(timeout=300)[1] for one in both]
    assert [one.returncode for one in both] == [130, 130], errors
    (saved,) = (int(path.name) for path in checkpoints.folder(workdir, "latest").iterdir())
    assert all(f"SIGINT: step {saved} is saved; the same command" in err for err in errors)
    short = {"num_steps": 2, "eval_every_steps": 2, "checkpoint_every_steps": 2}
    both = pair([tmp_path / "short"] * 2, overrides=short)
    wait_until((checkpoints.folder(tmp_path / "short", "latest") / "2").exists, both)
    both[1].send_signal(signal.SIGTERM)
    errors = [one.communicate(timeout=300)[1] for one in both]
    assert [one.returncode for one in both] == [143, 143], errors
    assert errors == ["SIGTERM: the run had come to its end, which is saved\n"] * 2
    assert checkpoints.find(tmp_path / "short").name == "final"


@pytest.mark.parametrize("killed", [0, 1])
def test_one_of_two_is_killed(killed, pair, tmp_path):
    both = pair([tmp_path / "run"] * 2, overrides=LONG)
    wait_for_steps(tmp_path / "run", both)
    loopback = {"0100007F", "0000000000000000FFFF00000100007F"}
    assert "00000000000000000000000000000000" not in listens_on(both[0].pid)
    assert listens_on(both[0].pid) & loopback
    both[killed].kill()
    _, err = both[1 - killed].communicate(timeout=180)
    assert both[1 - killed].returncode not in (0, None)
    assert several.GONE in err.splitlines()
    assert not re.search("^W\\d{4} |Traceback", err, re.MULTILINE)


def test_two_processes_are_killed_and_go_on_and_equal_one(pair, command, train_flags, tmp_path):
    short = {"num_steps": 4, "eval_every_steps": 4, "checkpoint_every_steps": 2, **SLOWLY}
    one, two = tmp_path / "one", tmp_path / "two"
    assert command("main", *train_flags(DG, one, short)).code == 0
    both = pair([two] * 2, overrides=short)
    wait_until((checkpoints.folder(two, "latest") / "2").exists, both)
    for each in both:
        each.kill()
        each.communicate()
    assert not checkpoints.folder(two, "final").exists()
    both = pair([two] * 2, overrides=short)
    out = [each.communicate(timeout=600) for each in both]
    assert [each.returncode for each in both] == [0, 0], out
    assert "going on from the checkpoint of step 2 " in out[0][0]
    assert said(out[1][0]) == out[1][1] == ""
    ours, theirs = (checkpoints.load_variables(checkpoints.folder(workdir, "final"))
                    for workdir in (two, one))
    assert_trees_close(ours[0], theirs[0], rtol=1e-3, atol=1e-6)
    for domain, scores in theirs[1]["scores"].items():
        found = ours[1]["scores"][domain]
        assert found["settings"] == scores["settings"]
        for key in ("miou", "pixel_accuracy"):
            assert found[key] == pytest.approx(scores[key], abs=2e-3)


def test_a_state_of_one_device_goes_on_over_four_and_back(
    process, command, train_flags, tmp_path, monkeypatch
):
    """Its last steps are undone and made again: on four devices, then on one."""
    short = {"num_steps": 6, "eval_every_steps": 6, "checkpoint_every_steps": 2,
             "keep_checkpoints": 3, "batch_size": 4, **SLOWLY}  # fmt: skip
    arguments = train_flags(DG, tmp_path / "run", short)
    assert command("main", *arguments).code == 0
    final = checkpoints.folder(tmp_path / "run", "final")
    whole, _ = checkpoints.load_variables(final)

    def undo(step: int) -> None:
        shutil.rmtree(final)
        for later in range(step + 2, 8, 2):
            shutil.rmtree(checkpoints.folder(tmp_path / "run", "latest") / str(later))

    undo(2)
    monkeypatch.setenv("XLA_FLAGS", "--xla_force_host_platform_device_count=4")
    running = process("main", *arguments)
    out, err = running.communicate(timeout=600)
    assert running.returncode == 0 and "devices           4 x cpu" in out, out + err
    assert "since the last start devices.count has changed from 1 to 4" in out
    assert_trees_close(checkpoints.load_variables(final)[0], whole, rtol=1e-3, atol=1e-6)
    undo(4)
    result = command("main", *arguments)
    assert result.code == 0 and "going on from the checkpoint of step 4 " in result.out
    assert_trees_close(checkpoints.load_variables(final)[0], whole, rtol=1e-3, atol=1e-6)


def test_processes_that_slurm_starts_find_each_other(process, train_flags, tmp_path, monkeypatch):
    """By what srun sets, JAX's port besides; one of them is asked to stop."""
    for name, value in {"JAX_COORDINATOR_PORT": free_port(), "SLURM_JOB_ID": 7, "SLURM_NTASKS": 2,
                        "SLURM_STEP_NODELIST": "localhost", "SLURM_LOCALID": 0}.items():
        monkeypatch.setenv(name, str(value))
    both = []
    for index in range(2):
        monkeypatch.setenv("SLURM_PROCID", str(index))
        both.append(process("main", *train_flags(DG, tmp_path / "run", LONG), "--distributed"))
    wait_for_steps(tmp_path / "run", both)
    both[0].send_signal(signal.SIGTERM)
    out = [one.communicate(timeout=300) for one in both]
    assert [one.returncode for one in both] == [143, 143], out
    assert "devices           2 x cpu" in out[0][0] and said(out[1][0]) == ""


def test_no_cluster_to_be_found(process, train_flags, tmp_path):
    _, err = (alone := process("main", *train_flags(DG, tmp_path / "w"), "--distributed")
              ).communicate(timeout=180)
    assert alone.returncode == 2 and list(tmp_path.iterdir()) == []
    assert err.startswith("error: --distributed: the environment names no other processes")
    assert err.count("\n") == 1


@pytest.mark.parametrize("index", [0, 1])
def test_the_other_process_never_appears(index, pair, tmp_path):
    (alone,) = pair([tmp_path / "run"] * 2, [index], None, "--join_timeout=3")
    _, err = alone.communicate(timeout=180)
    assert alone.returncode not in (0, None) and err.splitlines()[-1] == several.ABSENT
    assert not re.search("^W\\d{4} |Traceback", err, re.MULTILINE)


def test_processes_that_do_not_see_the_same_folder(pair, tmp_path):
    both = pair([tmp_path / "here", tmp_path / "there"])
    errors = [one.communicate(timeout=300)[1] for one in both]
    assert [one.returncode for one in both] == [2, 2], errors
    for err, name in zip(errors, ("here", "there"), strict=True):
        assert err.startswith("error: not all processes see the same folder: process 1 does not")
        assert f"{tmp_path / name}. All processes" in err and err.count("\n") == 1
    assert [path.name for path in (tmp_path / "here").iterdir()] == [lock.LOCK_FILE]
    assert not (tmp_path / "there").exists()


def test_port_in_use(refused, train_flags, tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        error = refused("main", *train_flags(DG, tmp_path / "w"), "--num_processes=2",
                        f"--coordinator=127.0.0.1:{port}", "--process_id=0")
    assert f"127.0.0.1:{port}: process 0 cannot listen there (Address already in use)" in error


def test_an_abort_in_a_thread_has_a_last_line(program):
    """As JAX aborts a process, from a thread of its own, while the first waits in C."""
    running = program(
        "import os, threading, time\nfrom snr_jax.process import several\n"
        "several.say_at_abort('before')\nseveral.say_at_abort('gone')\nprint('ready')\n"
        "threading.Timer(0.1, os.abort).start()\ntime.sleep(600)"
    )
    assert running.communicate(timeout=60) == ("", "gone\n")
    assert running.returncode == -signal.SIGABRT
