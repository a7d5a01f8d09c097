"""The bench of a step: its referee with workers that act, the twin's side, and what is told."""

import json
import math
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch.profiler import ProfilerActivity

from scripts import bench_step
from twin import workloads

ROOT = Path(__file__).resolve().parents[2]

# A worker that acts: each contestant's line says how many seconds it takes for what.
ACTOR = """
import json, sys, time
acts = json.loads(sys.argv[1])[sys.argv[2].split("/")[2]]
sys.stderr.write("much that nobody reads\\n" * 10_000)
def say(what):
    time.sleep(acts.get(what, 0))
    if acts.get("dies") == what:
        sys.exit("no memory for a " + what)
    print(json.dumps({
        "start": {"build_s": 1.0, "first_step_s": 2.0},
        "turn": {"turn_ms": acts.get("ms", 1.0), "peak_gib": 0.5},
        "kernels": {"kernels_ms": acts.get("ms", 1.0) / 2, "launches": 7.0}}[what]), flush=True)
say("start")
for line in sys.stdin:
    say(line.strip())
"""


@pytest.fixture
def race(monkeypatch, capsys, tmp_path):
    """race(acts of each contestant, *flags) → (exit code, rows in the file, printed lines)."""

    def run(acts: dict, *flags: str, expected_s: int = 0) -> tuple[int, list[dict], list[str]]:
        case = bench_step.Case(True, dict.fromkeys(acts, (expected_s, expected_s)), 2, (2, 2),
                               (2, 2))
        monkeypatch.setitem(bench_step.CASES, "gpu", case)
        monkeypatch.setattr(bench_step, "WORKER", (sys.executable, "-c", ACTOR, json.dumps(acts)))
        file = tmp_path / "bench.json"
        code = bench_step.main(["bench_step", "--cases=gpu", "--kinds=source", f"--out={file}",
                                *flags])
        return code, json.loads(file.read_text())["rows"], capsys.readouterr().out.splitlines()

    return run


def test_a_race_on_a_gpu(race):
    code, rows, printed = race({"ours": {"ms": 2.0}, "theirs": {"ms": 6.0},
                                "theirs compiled": {"ms": 3.0, "start": 0.5}}, "--rounds=2")
    assert code == 0 and [row["contestant"] for row in rows] == ["ours", "theirs",
                                                                 "theirs compiled"]
    assert rows[1] == {"case": "gpu", "kind": "source", "contestant": "theirs", "build_s": 1.0,
                       "first_step_s": 2.0, "milliseconds": [6.0, 6.0], "peak_gib": 0.5,
                       "kernels_ms": 3.0, "launches": 7.0}
    start = next(i for i, line in enumerate(printed) if line.startswith("gpu, source"))
    assert printed[start + 1:start + 4] == [
        f"{name}: first step after 3.0 s" for name in ("ours", "theirs", "theirs compiled")]
    assert printed[start + 4] == "round 1, ms a step: ours 2.0, theirs 6.0, theirs compiled 3.0"
    assert printed[start + 7] == "theirs: kernels 3.0 ms, 7 launches"
    assert printed[-4].split()[-4:] == ["ratio", "kernels", "ratio", "launches"]
    assert printed[-2].split() == ["theirs", "6.0", "6.0-6.0", "166.7", "0.50", "3.0", "3.00",
                                   "3.0", "3.00", "7"]


def test_what_pytorch_compiles_starts_beside_the_others(race, monkeypatch):
    order, begun, warm = [], bench_step.begun, bench_step.warm

    def told_begun(row: dict, *rest: object) -> bench_step.Worker:
        order.append(f"{row['contestant']} begins")
        return begun(row, *rest)

    def told_warm(worker: bench_step.Worker, *rest: object) -> None:
        warm(worker, *rest)
        order.append(f"{worker.row['contestant']} is warm")

    monkeypatch.setattr(bench_step, "begun", told_begun)
    monkeypatch.setattr(bench_step, "warm", told_warm)
    race({"ours": {}, "theirs compiled": {}, "theirs": {}}, "--rounds=1")
    assert order == ["theirs compiled begins", "ours begins", "ours is warm", "theirs begins",
                     "theirs is warm", "theirs compiled is warm"]


def test_what_is_known_is_in_the_file_before_the_next_turn(race, monkeypatch, tmp_path):
    """As a kill would leave it."""
    kept = []
    write = bench_step.write_text

    def keep(path: str, text: str) -> None:
        write(path, text)
        kept.append(json.loads(Path(path).read_text())["rows"])

    monkeypatch.setattr(bench_step, "write_text", keep)
    race({"ours": {"ms": 2.0}, "theirs": {}}, "--rounds=2")
    assert [[len(row["milliseconds"]) for row in rows] for rows in kept] == [
        [], [0, 0], [0, 0], [0, 0], [1, 1], [2, 2], [2, 2], [2, 2], [2, 2]]
    assert ["build_s" in row for row in kept[2]] == [True, False]
    assert ["kernels_ms" in row for row in kept[6]] == [True, False]


def test_contestants_can_be_chosen(race):
    _, rows, _ = race({"ours": {}, "theirs": {}}, "--rounds=1", "--contestants=theirs")
    assert [row["contestant"] for row in rows] == ["theirs"]


def test_who_fails_leaves_the_others_running(race):
    code, rows, printed = race({"ours": {"dies": "turn"}, "theirs": {"dies": "kernels"},
                                "absent": {"dies": "start"}}, "--rounds=2")
    assert code == 1
    ours, theirs, absent = rows
    assert ours["failed"] == "no memory for a turn" and ours["milliseconds"] == []
    assert theirs["milliseconds"] == [1.0, 1.0] and "failed" not in theirs
    assert theirs["no_kernels"] == "failed: no memory for a kernels"
    assert absent["failed"] == "no memory for a start"
    assert printed[-1].split(maxsplit=1) == ["absent", "failed: no memory for a start"]


def test_no_contestant_starts_that_the_time_limit_would_cut(race):
    code, rows, printed = race({"ours": {}}, "--time_limit=355", expected_s=310)
    assert code == 0 and rows[0]["milliseconds"] == []
    reason = "its start takes some 310 s and measuring 50, and 35"
    assert rows[0]["left_out"].startswith(reason)
    assert any(line.startswith(f"ours: left out: {reason}") for line in printed)
    assert printed[-1].split(maxsplit=1) == ["ours", f"left out: {rows[0]['left_out']}"]


def test_no_round_and_no_profile_begins_that_the_time_limit_would_cut(monkeypatch):
    acts = {"ours": {"turn": 0.1}}
    monkeypatch.setattr(bench_step, "WORKER", (sys.executable, "-c", ACTOR, json.dumps(acts)))
    row = {"case": "gpu", "kind": "source", "contestant": "ours", "milliseconds": []}
    left, noted = iter([60, 30, 0.05, 3, 3]), []
    terms = SimpleNamespace(deadline=math.inf, note=noted.append, left=left.__next__)
    with bench_step.started(row) as worker:
        bench_step.answer(worker)
        bench_step.take_turns([worker], 9, terms)
        bench_step.profile(worker, terms)
    assert row["milliseconds"] == [1.0, 1.0]
    assert row["no_kernels"] == "left out: 3 s are left"
    assert noted[2:] == ["left out: round 3 and what would follow, of 9",
                         "ours: no times of kernels, left out: 3 s are left"]


def test_what_has_begun_is_stopped_at_the_time_limit(race, monkeypatch):
    monkeypatch.setattr(bench_step, "MEASURING_S", 1)
    start = time.monotonic()
    code, rows, printed = race({"ours": {}, "theirs": {"start": 60}}, "--time_limit=5",
                               "--rounds=1")
    assert time.monotonic() - start < 30 and code == 0
    assert rows[0]["milliseconds"] == [1.0]  # the time to measure was kept
    assert rows[1]["left_out"] == "stopped by the time limit"
    assert "theirs: left out: stopped by the time limit" in printed


def test_autotuning_is_kept_from_one_process_to_the_next(monkeypatch, tmp_path):
    monkeypatch.setenv("XLA_FLAGS", "--xla_dump_to=there")
    file = tmp_path / "kept.textproto"
    new = tmp_path / "new_kept.textproto"
    first = f"--xla_dump_to=there --xla_gpu_dump_autotune_results_to={new}"
    assert bench_step.autotune_flags(file) == first
    new.write_text("version: 3")
    row = {"case": "gpu", "kind": "source", "contestant": "ours"}
    monkeypatch.setattr(bench_step, "WORKER", (sys.executable, "-c", ACTOR, '{"ours": {}}'))
    with bench_step.started(row) as worker:
        bench_step.warm(worker, bench_step.Terms(autotune=file))
    assert file.read_text() == "version: 3" and not new.exists()
    assert bench_step.autotune_flags(file) == (
        f"{first} --xla_gpu_load_autotune_results_from={file}")


def test_xla_knows_the_flags_of_autotuning(tmp_path):
    """It ends a process that has unknown ones."""
    file = tmp_path / "kept.textproto"
    file.touch()
    program = "import jax; jax.numpy.ones(1).block_until_ready()"
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True,
                            env={"XLA_FLAGS": bench_step.autotune_flags(file),
                                 "JAX_PLATFORMS": "cpu"})
    assert result.returncode == 0, result.stderr


def test_the_kernels_of_a_trace_of_pytorch():
    """Microseconds; what a compiled graph is called lies over its kernels once more."""
    events = [
        {"ph": "X", "cat": "kernel", "name": "gemm", "ts": 0, "dur": 1500},
        {"ph": "X", "cat": "gpu_memcpy", "name": "Memcpy DtoD", "ts": 2000, "dur": 250.5},
        {"ph": "X", "cat": "gpu_memset", "name": "Memset", "ts": 2300, "dur": 1},
        {"ph": "X", "cat": "gpu_user_annotation", "name": "CompiledFxGraph", "ts": 0, "dur": 3000},
        {"ph": "X", "cat": "cuda_runtime", "name": "cudaLaunchKernel", "ts": 0, "dur": 10},
        {"ph": "M", "name": "process_name", "pid": 0},
    ]
    assert workloads.kernel_events(events) == [1.5, 0.2505, 0.001]


def test_what_pytorch_does_on_a_cpu_is_no_kernel():
    ran = []
    launches = workloads.gpu_launches(lambda: ran.append(torch.ones(3).sum()),
                                      [ProfilerActivity.CPU])
    assert launches == []
    assert ran == [3]


def test_pytorch_compiles_for_each_size(monkeypatch):
    """For any size, as it would by itself, is slower."""
    told = []
    monkeypatch.setattr(torch.nn.Module, "compile", lambda self, **how: told.append(how))
    workloads.create_steps("source", ["float32", "compiled"], device="cpu", source_size=(33, 33),
                           target_size=(33, 33), batch_size=1, stage_sizes=(1, 1, 1, 1), width=4)
    assert told == [{"mode": "reduce-overhead", "dynamic": False}]


def test_times_by_hand():
    """The ratio is the median of the rounds' ratios, not the ratio of the medians."""
    common = {"case": "cpu", "kind": "adaptation", "peak_gib": 1.0, "build_s": 1.0,
              "first_step_s": 2.0}
    rows = [{**common, "contestant": "ours", "milliseconds": [100.0, 400.0, 200.0]},
            {**common, "contestant": "theirs", "milliseconds": [300.0, 400.0, 400.0]},
            {**common, "contestant": "absent", "milliseconds": [], "failed": "no such device"}]
    ours, theirs, absent = bench_step.table(rows).splitlines()[1:]
    assert ours.split() == ["ours", "200.0", "150.0-300.0", "10.0", "1.00", "3.0", "1.00"]
    assert theirs.split() == ["theirs", "400.0", "350.0-400.0", "5.0", "1.00", "3.0", "2.00"]
    assert absent.split(maxsplit=1) == ["absent", "failed: no such device"]


def test_a_contestant_that_dies_says_why():
    row = {"case": "cpu", "kind": "source", "contestant": "fortran"}
    with bench_step.started(row) as worker:
        assert bench_step.answer(worker) == {"failed": "KeyError: 'fortran'"}
