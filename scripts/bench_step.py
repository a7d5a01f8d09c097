"""Speed of a training step: this project's against PyTorch's, in one run on one machine.

    python scripts/bench_step.py [--cases demo,cpu] [--rounds 5] [--out bench.json]
    python scripts/bench_step.py --cases gpu --time_limit 480 --out bench.json
    python scripts/bench_step.py --cases vit  # ViT-B/14 alone, nothing beside it

Every contestant runs in a process of its own, is warm before it is timed, and they take turns,
whose first step is not timed; medians with the range between the quartiles. PyTorch runs
twin/, its inputs ready on the device; this project's step also augments the images.
Both flush denormals: XLA by itself. On a GPU a last turn of each goes through its library's
profiler: the sum of what ran on the device, copies included. What the clock shows beyond that is
the host's. Contestants start one after another, but for what PyTorch compiles: that takes minutes
of one core, and begins first. Needs neither TensorFlow nor ml_collections.

--out is written after every start, every round and every profile; what a kill leaves is whole.
"""

import contextlib
import json
import math
import os
import platform
import resource
import select
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple, TextIO

import numpy as np
from absl import flags

from snr_jax import cli
from snr_jax.core.errors import UserError
from snr_jax.core.files import write_text

ROOT = Path(__file__).resolve().parents[1]
WORKER = (sys.executable, __file__, "--worker")  # and CASE/KIND/CONTESTANT


class Case(NamedTuple):
    """What is trained where; steps: how many of a turn are timed, together."""

    on_gpu: bool
    contestants: Mapping[str, tuple[int, int]]  # → seconds to its first step, for each of `KINDS`
    steps: int
    source_size: tuple[int, int]
    target_size: tuple[int, int]
    batch_size: int = 1
    network: Mapping = MappingProxyType({})


# The first is what the others' ratios are to. The last is what a time limit leaves out first. The
# seconds are an H200's with a slow host, and a 2-core CPU's.
ON_GPU = {"jax bfloat16": (60, 90), "torch float32": (15, 15),
          "torch bfloat16 channels_last": (15, 15),
          "torch bfloat16 channels_last compiled": (115, 220), "jax float32": (60, 90)}
ON_CPU = {"jax float32": (40, 45), "torch float32": (10, 10),
          "torch float32 channels_last": (10, 10)}
CASES = {
    "gpu": Case(True, ON_GPU, 10, (720, 1280), (512, 1024)),
    "vit": Case(True, {"jax bfloat16": (60, 300)}, 10, (1024, 1024), (1024, 1024), 1,
                {"backbone": "dinov2_b"}),
    "cpu": Case(False, ON_CPU, 3, (129, 257), (129, 257)),
    "demo": Case(False, ON_CPU, 5, (96, 192), (96, 192), 4,
                 {"stage_sizes": (1, 2, 2, 1), "width": 16}),
}
KINDS = ("source", "adaptation")
# Seconds: that all turns of a race and its profiles take, and one profile. On a GPU.
MEASURING_S, PROFILE_S = 50, 10

FLAGS = flags.FlagValues()
flags.DEFINE_list("cases", [], f"Workloads, of {', '.join(CASES)}; by default demo and cpu, "
                  "and gpu where there is one.", flag_values=FLAGS)
flags.DEFINE_list("kinds", list(KINDS), f"Steps to time, of {', '.join(KINDS)}.", flag_values=FLAGS)
flags.DEFINE_integer("rounds", 7, "Turns of each contestant.", lower_bound=1, flag_values=FLAGS)
flags.DEFINE_list("contestants", [], "Contestants to run, as 'jax bfloat16,torch float32'; by "
                  "default all of a case.", flag_values=FLAGS)
flags.DEFINE_float("time_limit", 0, "Seconds for all: nothing begins that would take longer, what "
                   "does is stopped, and what was left out is said. 0: none.", lower_bound=0,
                   flag_values=FLAGS)
cli.define_path("out", "", "JSON file for the results.", flag_values=FLAGS)
cli.define_path("autotune", "", "File that keeps what XLA found fastest on a GPU, for later starts "
                "with the same JAX; by default beside --out.", flag_values=FLAGS)
flags.DEFINE_string("worker", "", "(internal) CASE/KIND/CONTESTANT to run steps of.",
                    flag_values=FLAGS)


# The workers: build and warm up, then run steps whenever a line comes in ---------------------


def jax_steps(case: Case, kind: str, options: list[str]) -> tuple[Callable[[int], None], Callable]:
    """(run that many steps and wait, peak bytes or None)."""
    import jax

    from snr_jax.core.parallel import create_parallel
    from snr_jax.core.workloads import create_workload

    if case.on_gpu and jax.default_backend() != "gpu":
        raise RuntimeError("JAX has found no GPU")
    forms = {"atrous": "weight_gradient", "pointwise": "convolution", "bn_sums": "pallas",
             "attention": "cudnn" if options[0] == "bfloat16" else "xla", "affine_snr": True}
    work = create_workload(
        kind, source_size=case.source_size, target_size=case.target_size,
        batch_size=case.batch_size, dtype=np.dtype(options[0]),
        forms=forms if case.on_gpu else {}, **case.network)
    parallel = create_parallel(jax.local_devices()[:1])
    step = parallel.compile(work.step, 0)
    state, batch = parallel.replicate(work.initial_state()), parallel.shard(work.random_batch())

    def run(steps: int) -> None:
        nonlocal state
        for _ in range(steps):
            state, metrics = step(state, batch)
        jax.block_until_ready((state, metrics))

    def peak() -> int | None:
        return (jax.local_devices()[0].memory_stats() or {}).get("peak_bytes_in_use")

    return run, peak


def torch_steps(case: Case, kind: str, options: list[str]) -> tuple[Callable, Callable]:
    from twin.workloads import create_steps

    return create_steps(
        kind, options, device="cuda" if case.on_gpu else "cpu", source_size=case.source_size,
        target_size=case.target_size, batch_size=case.batch_size, **case.network)


def launches(library: str, run: Callable[[], None]) -> list[float]:
    """Milliseconds of what a GPU does while it runs, by the library's own profiler."""
    if library == "jax":
        from snr_jax.core.workloads import gpu_launches
    else:
        from twin.workloads import gpu_launches
    return gpu_launches(run)


def work(name: str) -> None:
    """One JSON line when warm, then one for each line read: `turn` or `kernels`."""
    told = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # where libraries may print what they like
    case, kind, contestant = name.split("/")
    library, *options = contestant.split()
    build = {"jax": jax_steps, "torch": torch_steps}[library]
    steps = CASES[case].steps
    start = time.perf_counter()
    run, peak = build(CASES[case], kind, options)
    built = time.perf_counter()
    run(1)
    first = time.perf_counter()
    run(2)

    def turn() -> dict:
        run(1)  # after other contestants' turns it takes up to twice as long as the next ones
        start = time.perf_counter()
        run(steps)
        milliseconds = 1000 * (time.perf_counter() - start) / steps
        used = peak() or 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return {"turn_ms": milliseconds, "peak_gib": used / 2**30}

    def kernels() -> dict:
        run(1)
        if found := launches(library, lambda: run(steps)):
            return {"kernels_ms": sum(found) / steps, "launches": len(found) / steps}
        raise RuntimeError("the profiler has seen nothing on a GPU")

    print(json.dumps({"build_s": built - start, "first_step_s": first - built}), file=told,
          flush=True)
    for line in sys.stdin:
        said = {"turn": turn, "kernels": kernels}[line.strip()]()
        print(json.dumps(said), file=told, flush=True)


# The referee ----------------------------------------------------------------------------------


class Terms(NamedTuple):
    """What holds for every race. note: says a line, and writes down what is known by then."""

    note: Callable[[str], None] = print
    deadline: float = math.inf  # of time.monotonic
    autotune: Path | None = None

    def left(self) -> float:
        return self.deadline - time.monotonic()


class Worker(NamedTuple):
    row: dict
    process: subprocess.Popen
    words: TextIO  # a file, not a pipe: nobody reads what it says until it dies


@contextlib.contextmanager
def started(row: dict, autotune: Path | None = None) -> Iterator[Worker]:
    """Yields the contestant's process, and ends it."""
    name = "/".join((row["case"], row["kind"], row["contestant"]))
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
    if not CASES[row["case"]].on_gpu:
        environment |= {"JAX_PLATFORMS": "cpu", "CUDA_VISIBLE_DEVICES": ""}
    elif autotune:
        environment["XLA_FLAGS"] = autotune_flags(autotune)
    with tempfile.TemporaryFile("w+") as words, subprocess.Popen(
        [*WORKER, name], cwd=ROOT, env=environment, text=True, stdin=subprocess.PIPE,
        stdout=subprocess.PIPE, stderr=words,
    ) as process:
        try:
            yield Worker(row, process, words)
        finally:
            process.kill()


def new_autotune(file: Path) -> Path:
    """The name under which a process writes it: one that is killed meanwhile leaves a part."""
    return file.with_name(f"new_{file.name}")


def autotune_flags(file: Path) -> str:
    """XLA_FLAGS that read the file, where there is one, and write it anew."""
    added = [f"--xla_gpu_dump_autotune_results_to={new_autotune(file)}"]
    if file.exists():  # XLA fails where it is missing
        added.append(f"--xla_gpu_load_autotune_results_from={file}")
    return " ".join([os.environ.get("XLA_FLAGS", ""), *added]).strip()


def answer(worker: Worker, deadline: float = math.inf) -> dict:
    """What the worker says next: {"failed": its last words}, {"left_out": why} if it does not."""
    left = None if deadline == math.inf else max(0, deadline - time.monotonic())
    if not select.select([worker.process.stdout], [], [], left)[0]:
        worker.process.kill()
        return {"left_out": "stopped by the time limit"}
    if line := worker.process.stdout.readline():
        return json.loads(line)
    worker.process.wait()
    worker.words.seek(0)
    return {"failed": (worker.words.read().strip().splitlines() or ["no message"])[-1]}


def ask(worker: Worker, word: str, deadline: float) -> dict:
    with contextlib.suppress(BrokenPipeError):  # has died, and its answer says of what
        os.write(worker.process.stdin.fileno(), f"{word}\n".encode())
    return answer(worker, deadline)


def out(row: dict) -> str | None:
    """Why the contestant takes no more turns."""
    return next((f"{key.replace('_', ' ')}: {row[key]}" for key in ("failed", "left_out")
                 if key in row), None)


def begun(row: dict, terms: Terms, stack: contextlib.ExitStack) -> Worker | None:
    """Its worker until the stack ends, or None if it would not be ready in time."""
    seconds = CASES[row["case"]].contestants[row["contestant"]][KINDS.index(row["kind"])]
    if terms.left() < seconds + MEASURING_S:
        row["left_out"] = (f"its start takes some {seconds} s and measuring {MEASURING_S}, and "
                           f"{terms.left():.0f} are left")
        terms.note(f"{row['contestant']}: {out(row)}")
        return None
    return stack.enter_context(started(row, terms.autotune))


def warm(worker: Worker, terms: Terms) -> None:
    """Waits for its first steps, as long as all are measured that are warm by then."""
    row = worker.row
    row |= answer(worker, terms.deadline - MEASURING_S)
    if terms.autotune and (new := new_autotune(terms.autotune)).exists():
        new.replace(terms.autotune)
    if "first_step_s" in row:
        terms.note(f"{row['contestant']}: first step after {first_step(row):.1f} s")
    else:
        terms.note(f"{row['contestant']}: {out(row)}")


def first_step(row: dict) -> float:
    return row["build_s"] + row["first_step_s"]


def race(rows: Sequence[dict], rounds: int, terms: Terms) -> None:
    """Fills a row for each contestant; one that fails has its last words besides."""
    with contextlib.ExitStack() as stack:
        compiled = [row for row in rows if row["contestant"].endswith("compiled")]
        beside = [worker for row in compiled if (worker := begun(row, terms, stack))]
        workers = []
        for row in rows:  # one at a time: each warms up on an idle GPU
            if row not in compiled and (worker := begun(row, terms, stack)):
                warm(worker, terms)
                workers.append(worker)
        for worker in beside:
            warm(worker, terms)
        workers = sorted(workers + beside, key=lambda worker: rows.index(worker.row))
        take_turns(workers, rounds, terms)
        for worker in workers:
            if CASES[worker.row["case"]].on_gpu and not out(worker.row):
                profile(worker, terms)


def take_turns(workers: Sequence[Worker], rounds: int, terms: Terms) -> None:
    longest = 0.0
    for number in range(1, rounds + 1):
        if all(out(worker.row) for worker in workers):
            return
        start = time.monotonic()
        if terms.left() < longest:
            return terms.note(f"left out: round {number} and what would follow, of {rounds}")
        told = []
        for worker in workers:
            if out(worker.row):
                continue
            said = ask(worker, "turn", terms.deadline)
            if "turn_ms" in said:
                worker.row["milliseconds"].append(said.pop("turn_ms"))
                told.append(f"{worker.row['contestant']} {worker.row['milliseconds'][-1]:.1f}")
            worker.row.update(said)
            if out(worker.row):
                told.append(f"{worker.row['contestant']} {out(worker.row)}")
        longest = max(longest, time.monotonic() - start)
        terms.note(f"round {number}, ms a step: {', '.join(told)}")


def profile(worker: Worker, terms: Terms) -> None:
    """Adds the kernels' times to the row, or why there are none: the clock's stay good."""
    row, name = worker.row, worker.row["contestant"]
    said = {"left_out": f"{terms.left():.0f} s are left"}
    if terms.left() >= PROFILE_S:
        said = ask(worker, "kernels", terms.deadline)
    if "kernels_ms" in said:
        row |= said
        terms.note(f"{name}: kernels {row['kernels_ms']:.1f} ms, {row['launches']:.0f} launches")
    else:
        row["no_kernels"] = out(said)
        terms.note(f"{name}: no times of kernels, {out(said)}")


def quartiles(values: Sequence[float]) -> tuple[float, float, float]:
    if len(values) == 1:
        return (values[0],) * 3
    return tuple(statistics.quantiles(values, n=4, method="inclusive"))


def table(rows: Sequence[dict]) -> str:
    """One race. Ratios are medians of the rounds' own ratios to the first contestant."""
    profiled = any("kernels_ms" in row for row in rows)
    lines = [f"{'':<40}{'ms a step':>10}{'quartiles':>16}{'images/s':>10}{'GiB':>7}{'first s':>9}"
             f"{'ratio':>7}" + f"{'kernels':>9}{'ratio':>7}{'launches':>10}" * profiled]
    reference = rows[0]
    for row in rows:
        if "failed" in row or not row["milliseconds"]:
            lines.append(f"{row['contestant']:<40}{out(row) or 'left out: no turn was taken'}")
            continue
        low, median, high = quartiles(row["milliseconds"])
        case = CASES[row["case"]]
        images = case.batch_size * (2 if row["kind"] == "adaptation" else 1)
        ratio = [a / b for a, b in zip(row["milliseconds"], reference["milliseconds"])]
        line = (f"{row['contestant']:<40}{median:>10.1f}{f'{low:.1f}-{high:.1f}':>16}"
                f"{1000 * images / median:>10.1f}{row['peak_gib']:>7.2f}{first_step(row):>9.1f}"
                f"{f'{statistics.median(ratio):.2f}' if ratio else '-':>7}")
        if "kernels_ms" in row:
            times = row["kernels_ms"] / reference.get("kernels_ms", math.nan)
            line += f"{row['kernels_ms']:>9.1f}{times:>7.2f}{row['launches']:>10.0f}"
        lines.append(line)
    return "\n".join(lines)


def machine() -> dict:
    """What the times belong to."""
    names = [line.partition(":")[2].strip() for line in
             Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    found = {"cpu": f"{os.cpu_count()} x {names[0] if names else platform.machine()}",
             "gpu": gpu_name(), "python": platform.python_version(),
             **{name: os.environ.get(name, "") for name in ("GLIBC_TUNABLES", "XLA_FLAGS")}}
    return found | {name: version_of(name) for name in ("jax", "flax", "torch")}


def version_of(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:  # its contestants will say so
        return ""


def gpu_name() -> str:
    if not shutil.which("nvidia-smi"):
        return ""
    asked = subprocess.run(["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"],
                           capture_output=True, text=True)
    return asked.stdout.strip().partition("\n")[0] if asked.returncode == 0 else ""


def chosen_cases(args: flags.FlagValues) -> list[str]:
    """The cases to run; raises UserError for a name that nothing has."""
    cases = args.cases or ["demo", "cpu", *(["gpu"] if gpu_name() else [])]
    contestants = {name for case in cases if case in CASES for name in CASES[case].contestants}
    for name, chosen, known in (("cases", cases, CASES), ("kinds", args.kinds, KINDS),
                                ("contestants", args.contestants, sorted(contestants))):
        if strange := [word for word in chosen if word not in known]:
            raise UserError(
                f"--{name} has {strange[0]!r}; expected some of {', '.join(known)}")
    return cases


def autotune_file(args: flags.FlagValues) -> Path | None:
    """The file, in a folder that there is; XLA reads and writes text if its name says so."""
    beside = args.out and Path(args.out).with_name(f"autotune_jax_{version_of('jax')}.textproto")
    if not (chosen := args.autotune or beside):
        return None
    file = Path(chosen).absolute()
    file.parent.mkdir(parents=True, exist_ok=True)
    return file


def command(args: flags.FlagValues) -> int:
    if args.worker:
        work(args.worker)
        return 0
    deadline = time.monotonic() + (args.time_limit or math.inf)
    cases = chosen_cases(args)
    result = {"machine": machine(), "rows": []}

    def note(text: str) -> None:
        print(text, flush=True)
        if args.out:
            write_text(args.out, json.dumps(result, indent=1) + "\n")

    terms = Terms(note, deadline, autotune_file(args))
    note(", ".join(f"{key} {value or '-'}" for key, value in result["machine"].items()))
    for case in cases:
        for kind in args.kinds:
            rows = [{"case": case, "kind": kind, "contestant": name, "milliseconds": []}
                    for name in CASES[case].contestants
                    if not args.contestants or name in args.contestants]
            if not rows:
                continue
            result["rows"] += rows
            sizes = (CASES[case].source_size, CASES[case].target_size)[: 1 + (kind != "source")]
            size = " + ".join("x".join(map(str, x)) for x in sizes)
            note(f"\n{case}, {kind} step, {size}, batch {CASES[case].batch_size}")
            race(rows, args.rounds, terms)
            note(table(rows))
    return 0 if all("failed" not in row for row in result["rows"]) else 1


def main(argv: Sequence[str] | None = None) -> int:
    return cli.run(argv, FLAGS, __doc__, command)


if __name__ == "__main__":
    sys.exit(main())
