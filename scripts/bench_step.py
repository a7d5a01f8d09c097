"""Speed of a training step: this project's against PyTorch's, in one run on one machine.

    python scripts/bench_step.py [--cases demo,cpu] [--rounds 5] [--out bench.json]

Every contestant runs in a process of its own, is warm before it is timed, and they take turns,
whose first step is not timed; medians with the range between the quartiles. PyTorch runs
twin/, its inputs ready on the device; this project's step also augments the images.
Both flush denormals: XLA by itself.
"""

import json
import os
import platform
import resource
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

import numpy as np
from absl import flags

from snr_jax import cli
from snr_jax.core.errors import UserError
from snr_jax.core.files import write_text

ROOT = Path(__file__).resolve().parents[1]


class Case(NamedTuple):
    """What is trained where; steps: how many of a turn are timed, together."""

    on_gpu: bool
    contestants: tuple[str, ...]
    steps: int
    source_size: tuple[int, int]
    target_size: tuple[int, int]
    batch_size: int = 1
    network: Mapping = MappingProxyType({})


ON_GPU = ("jax bfloat16", "jax float32", "torch float32", "torch bfloat16 channels_last",
          "torch bfloat16 channels_last compiled")
ON_CPU = ("jax float32", "torch float32", "torch float32 channels_last")
CASES = {
    "gpu": Case(True, ON_GPU, 10, (720, 1280), (512, 1024)),
    "cpu": Case(False, ON_CPU, 3, (129, 257), (129, 257)),
    "demo": Case(False, ON_CPU, 5, (96, 192), (96, 192), 4,
                 {"stage_sizes": (1, 2, 2, 1), "width": 16}),
}
KINDS = ("source", "adaptation")

FLAGS = flags.FlagValues()
flags.DEFINE_list("cases", [], f"Workloads, of {', '.join(CASES)}; by default demo and cpu, "
                  "and gpu where there is one.", flag_values=FLAGS)
flags.DEFINE_list("kinds", list(KINDS), f"Steps to time, of {', '.join(KINDS)}.", flag_values=FLAGS)
flags.DEFINE_integer("rounds", 7, "Turns of each contestant.", lower_bound=1, flag_values=FLAGS)
cli.define_path("out", "", "JSON file for the results.", flag_values=FLAGS)
flags.DEFINE_string("worker", "", "(internal) CASE/KIND/CONTESTANT to run steps of.",
                    flag_values=FLAGS)


# The workers: build and warm up, then run steps whenever a line comes in ---------------------


def jax_steps(case: Case, kind: str, options: list[str]) -> tuple[Callable[[int], None], Callable]:
    """(run that many steps and wait, peak bytes or None)."""
    import jax

    from snr_jax.core.workloads import create_workload

    forms = {"atrous": "weight_gradient", "pointwise": "convolution", "bn_sums": "pallas",
             "affine_snr": True} if case.on_gpu else {}
    work = create_workload(
        kind, source_size=case.source_size, target_size=case.target_size,
        batch_size=case.batch_size, dtype=np.dtype(options[0]), **forms, **case.network)
    step = jax.jit(work.step, donate_argnums=0)
    state, batch = jax.device_put((work.initial_state(), work.random_batch()))

    def run(steps: int) -> None:
        nonlocal state
        for _ in range(steps):
            state, metrics = step(state, batch)
        jax.block_until_ready((state, metrics))

    def peak() -> int | None:
        return (jax.local_devices()[0].memory_stats() or {}).get("peak_bytes_in_use")

    return run, peak


def torch_steps(
    case: Case, kind: str, options: list[str]
) -> tuple[Callable[[int], None], Callable]:
    import torch

    import twin as torch_twin

    torch.set_flush_denormal(True)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    torch.backends.cudnn.benchmark = True
    torch.manual_seed(0)
    device = "cuda" if case.on_gpu else "cpu"
    layout = torch.channels_last if "channels_last" in options else torch.contiguous_format
    model = torch_twin.DeepLab(**case.network).to(device, memory_format=layout)
    phi = torch_twin.Restitution(width=case.network.get("width", 64)).to(device)
    if "compiled" in options:
        model.compile(mode="reduce-overhead")

    def image(size: tuple[int, int]) -> torch.Tensor:
        x = 50 * torch.randn(case.batch_size, 3, *size, device=device)
        return x.contiguous(memory_format=layout)

    label = torch.randint(0, 19, (case.batch_size, *case.source_size), device=device)
    inputs = [image(case.source_size), label.to(torch.uint8)]
    step = torch_twin.source_step
    if kind == "adaptation":
        inputs.append(image(case.target_size))
        step = torch_twin.adaptation_step
    velocities: dict[str, torch.Tensor] = {}

    def run(steps: int) -> None:
        for _ in range(steps):
            if "compiled" in options:
                torch.compiler.cudagraph_mark_step_begin()
            with torch.autocast(device, torch.bfloat16, enabled="bfloat16" in options):
                step(model, velocities, *inputs, rate=2.5e-4, repeated_updates=True, phi=phi)
        if case.on_gpu:
            torch.cuda.synchronize()

    return run, lambda: torch.cuda.max_memory_allocated() if case.on_gpu else None


def work(name: str) -> None:
    """One JSON line when warm, one number of milliseconds per line read, one JSON line last."""
    case, kind, contestant = name.split("/")
    library, *options = contestant.split()
    build = {"jax": jax_steps, "torch": torch_steps}[library]
    start = time.perf_counter()
    run, peak = build(CASES[case], kind, options)
    built = time.perf_counter()
    run(1)
    first = time.perf_counter()
    run(2)
    steps = CASES[case].steps
    print(json.dumps({"build_s": built - start, "first_step_s": first - built}), flush=True)
    for _ in sys.stdin:
        run(1)  # after other contestants' turns it takes up to twice as long as the next ones
        start = time.perf_counter()
        run(steps)
        print(1000 * (time.perf_counter() - start) / steps, flush=True)
    bytes_used = peak() or 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(json.dumps({"peak_gib": bytes_used / 2**30}), flush=True)


# The referee ----------------------------------------------------------------------------------


def start_worker(name: str, on_gpu: bool) -> subprocess.Popen:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
    if not on_gpu:
        environment |= {"JAX_PLATFORMS": "cpu", "CUDA_VISIBLE_DEVICES": ""}
    return subprocess.Popen(
        [sys.executable, __file__, "--worker", name], cwd=ROOT, env=environment, text=True,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def answer(worker: subprocess.Popen) -> str:
    """The worker's next line; ChildProcessError with its last words where it died."""
    if line := worker.stdout.readline():
        return line
    words = worker.stderr.read().strip().splitlines() or ["no message"]
    raise ChildProcessError(words[-1])


def race(case: str, kind: str, rounds: int) -> list[dict]:
    """A row per contestant; a contestant that fails has its last words instead of times."""
    rows, workers = [], {}
    for contestant in CASES[case].contestants:
        row = {"case": case, "kind": kind, "contestant": contestant, "milliseconds": []}
        rows.append(row)
        worker = start_worker(f"{case}/{kind}/{contestant}", CASES[case].on_gpu)
        try:  # one at a time: each warms up on an idle machine
            row |= json.loads(answer(worker))
            workers[contestant] = worker
        except ChildProcessError as error:
            row["failed"] = str(error)
    running = [row for row in rows if "failed" not in row]
    for _ in range(rounds):
        for row in running:
            worker = workers[row["contestant"]]
            worker.stdin.write("go\n")
            worker.stdin.flush()
            row["milliseconds"].append(float(answer(worker)))
    for row in running:
        worker = workers[row["contestant"]]
        worker.stdin.close()
        row |= json.loads(answer(worker))
        worker.wait()
    return rows


def quartiles(values: Sequence[float]) -> tuple[float, float, float]:
    if len(values) == 1:
        return (values[0],) * 3
    return tuple(statistics.quantiles(values, n=4, method="inclusive"))


def table(rows: Sequence[dict]) -> str:
    """One race. Ratios are medians of the rounds' own ratios to the first contestant."""
    lines = [f"{'':<40}{'ms a step':>10}{'quartiles':>16}{'images/s':>10}{'GiB':>7}{'first s':>9}"
             f"{'ratio':>7}"]
    reference = rows[0]["milliseconds"]
    for row in rows:
        if "failed" in row:
            lines.append(f"{row['contestant']:<40}failed: {row['failed']}")
            continue
        low, median, high = quartiles(row["milliseconds"])
        case = CASES[row["case"]]
        images = case.batch_size * (2 if row["kind"] == "adaptation" else 1)
        ratio = [a / b for a, b in zip(row["milliseconds"], reference)]
        lines.append(
            f"{row['contestant']:<40}{median:>10.1f}{f'{low:.1f}-{high:.1f}':>16}"
            f"{1000 * images / median:>10.1f}{row['peak_gib']:>7.2f}"
            f"{row['build_s'] + row['first_step_s']:>9.1f}"
            f"{f'{statistics.median(ratio):.2f}' if ratio else '-':>7}")
    return "\n".join(lines)


def machine() -> dict:
    """What the times belong to."""
    from importlib.metadata import version

    names = [line.partition(":")[2].strip() for line in
             Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    found = {"cpu": f"{os.cpu_count()} x {names[0] if names else platform.machine()}",
             "gpu": gpu_name(), "python": platform.python_version(),
             **{name: os.environ.get(name, "") for name in ("GLIBC_TUNABLES", "XLA_FLAGS")}}
    return found | {name: version(name) for name in ("jax", "flax", "torch")}


def gpu_name() -> str:
    if not shutil.which("nvidia-smi"):
        return ""
    asked = subprocess.run(["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"],
                           capture_output=True, text=True)
    return asked.stdout.strip().partition("\n")[0] if asked.returncode == 0 else ""


def command(args: flags.FlagValues) -> int:
    if args.worker:
        work(args.worker)
        return 0
    cases = args.cases or ["demo", "cpu", *(["gpu"] if gpu_name() else [])]
    for name, chosen, known in (("cases", cases, CASES), ("kinds", args.kinds, KINDS)):
        if strange := [word for word in chosen if word not in known]:
            raise UserError(
                f"--{name} has {strange[0]!r}; expected some of {', '.join(known)}")
    result = {"machine": machine(), "rows": []}
    print(", ".join(f"{key} {value or '-'}" for key, value in result["machine"].items()))
    for case in cases:
        for kind in args.kinds:
            sizes = (CASES[case].source_size, CASES[case].target_size)[: 1 + (kind != "source")]
            size = " + ".join("x".join(map(str, x)) for x in sizes)
            print(f"\n{case}, {kind} step, {size}, batch {CASES[case].batch_size}", flush=True)
            rows = race(case, kind, args.rounds)
            print(table(rows), flush=True)
            result["rows"] += rows
    if args.out:
        write_text(args.out, json.dumps(result, indent=1) + "\n")
    return 0 if all("failed" not in row for row in result["rows"]) else 1


def main(argv: Sequence[str] | None = None) -> int:
    return cli.run(argv, FLAGS, __doc__, command)


if __name__ == "__main__":
    sys.exit(main())
