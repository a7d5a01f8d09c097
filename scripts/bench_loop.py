"""Where the time of a run goes: the step, its input, and all that a run does besides.

On a machine that does nothing else, with torch installed, and with data of the configuration:

    python scripts/make_toy_domains.py --out runs/toy/data --style dusk
    python scripts/bench_loop.py --config configs/toy_dg.py --out runs/bench_loop.md

On a GPU at full size, from prepared data (drawn here; GTA5's and Cityscapes' own do as well), the
step alone beside it:

    python scripts/make_toy_domains.py --out runs/full --layouts gta5,cityscapes --height 1052 \\
        --width 1914 --num_train 16 --num_val 2
    python scripts/prepare_data.py --domain gta5 --dir runs/full/GTA5 --out runs/full/prepared
    JAX_COMPILATION_CACHE_DIR=runs/jax_cache python scripts/bench_loop.py --config gta5_dg \\
        --config.data.root=runs/full --config.data.prepared=runs/full/prepared --steps 200 \\
        --rounds 1 --out runs/bench_loop.md

Without --config.data.prepared it reads the files. 200 steps: the first 20 to 40 come from what the
stream has read ahead. The cache spares the whole run, a step made anew each round, its compilation.
JAX takes three quarters of the GPU's memory and PyTorch finds the rest (8 GiB are enough); where it
is less, set XLA_PYTHON_CLIENT_MEM_FRACTION.

Training on the source. Each row is timed over --steps steps after a warm-up, and they take turns,
round by round; the table has medians. The whole run is `snr_jax.main`'s: its time includes what is
logged and the states that are saved, and ends before the validation. The peer reads the same files
as the lineage does (twin/loader.py) and trains twin/.
"""

import itertools
import json
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from absl import flags
from ml_collections import ConfigDict

from snr_jax import cli
from snr_jax.config import checks
from snr_jax.core.errors import UserError
from twin.loader import LineageDataset

WARM_UP = 5
PEER_STEP, PEER_LOOP = "PyTorch: step alone", "PyTorch: DataLoader + step"
WHOLE = "whole run: logging, states"

FLAGS = flags.FlagValues()
cli.define_config(FLAGS)
flags.DEFINE_integer("steps", 100, "Steps timed in a round.", lower_bound=2, flag_values=FLAGS)
flags.DEFINE_integer("rounds", 3, "Rounds of all, in turns.", lower_bound=1, flag_values=FLAGS)
flags.DEFINE_integer("workers", os.cpu_count(), "Processes of PyTorch's DataLoader.", lower_bound=1,
                     flag_values=FLAGS)  # fmt: skip
cli.define_path("out", "", "File for the table, which is printed as well.", flag_values=FLAGS)


def milliseconds(one: Callable[[], object], wait: Callable[[], object], steps: int) -> float:
    """Time of one call, in a row of `steps` that `wait` waits for."""
    for _ in range(WARM_UP):
        one()
    wait()
    start = time.perf_counter()
    for _ in range(steps):
        one()
    wait()
    return 1000 * (time.perf_counter() - start) / steps


def peer_loops(config: ConfigDict, samples: list, workers: int) -> dict[str, Callable]:
    """Row → (one step, how to wait for it) of PyTorch."""
    import twin as torch_twin

    torch.set_flush_denormal(True)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    network = {key: config.model[key] for key in ("stage_sizes", "width", "head_branches")}
    model = torch_twin.DeepLab(num_classes=config.num_classes, **network).to(device)
    phi = None  # recipe `release` has no restitution loss
    if config.loss.restitution_weight:
        phi = torch_twin.Restitution(config.num_classes, config.model.width).to(device)
    recipe = {"repeated_updates": config.optimizer.repeated_updates,
              "train_snr": config.optimizer.train_snr, "phi": phi,
              "restitution_weight": config.loss.restitution_weight}
    loader = torch.utils.data.DataLoader(
        LineageDataset(samples, tuple(config.source.size)), config.batch_size,
        shuffle=True, drop_last=True, num_workers=workers, persistent_workers=True,
    )
    epochs = itertools.chain.from_iterable(itertools.repeat(loader))
    velocities: dict[str, torch.Tensor] = {}

    def step(batch: Sequence[torch.Tensor]) -> None:
        images, labels = (part.to(device) for part in batch)
        labels = labels.long() % 256  # the lineage's ignored -1 is the twin's 255
        torch_twin.source_step(model, velocities, images, labels, rate=2.5e-4, **recipe)

    def wait() -> None:
        if device == "cuda":
            torch.cuda.synchronize()

    fixed = [part.to(device) for part in next(epochs)]  # forks before TensorFlow has threads
    return {PEER_STEP: (lambda: step(fixed), wait), PEER_LOOP: (lambda: step(next(epochs)), wait)}


def own_loops(config: ConfigDict, splits: Mapping) -> dict[str, Callable]:
    """Row → (one step, how to wait for it) of this project."""
    import jax

    from snr_jax.config import arguments
    from snr_jax.core.parallel import create_parallel
    from snr_jax.core.state import create_state
    from snr_jax.data.prefetch import prefetch_to_device
    from snr_jax.runs import experiment, network

    parallel = create_parallel()
    model = experiment.create_model(config, parallel)
    tx, _ = experiment.create_optimizer(config)
    variables = network.initialize(model, **arguments.initial_arguments(config))
    state = parallel.replicate(create_state(variables, tx))
    compiled = experiment.create_step(config, model, tx, parallel)
    metrics = None

    def step(batch: dict) -> None:
        nonlocal state, metrics
        state, metrics = compiled(state, batch)
        if parallel.must_wait:
            wait()

    def wait() -> None:
        jax.block_until_ready(metrics)

    batches = prefetch_to_device(experiment.batches(config, splits, 0), parallel.shard)
    fixed = next(batches)
    return {
        "step alone": (lambda: step(fixed), wait),
        "input alone": (lambda: next(batches), lambda: None),
        "input + step": (lambda: step(next(batches)), wait),
    }


def whole_run(config: ConfigDict, steps: int) -> float:
    """Milliseconds of a step between the first line that is logged and the last."""
    from snr_jax.runs.train import train

    config = config.copy_and_resolve_references()
    every = config.log_every_steps
    config.num_steps = config.eval_every_steps = every * (1 + -(-steps // every))
    config.eval.num_pictures = 0
    with tempfile.TemporaryDirectory() as workdir:
        train(config, workdir)
        rows = map(json.loads, (Path(workdir) / "metrics.jsonl").read_text().splitlines())
        logged = [(row["step"], row["time"]) for row in rows if "train/loss_source" in row]
    (first, start), (last, end) = logged[0], logged[-1]
    return 1000 * (end - start) / (last - first)


def table(times: Mapping[str, Sequence[float]], batch_size: int) -> str:
    """Markdown. times: row → milliseconds a step, by round."""
    lines = ["| | ms a step | images/s | to PyTorch's loop |", "|---|---|---|---|"]
    for name, rounds in times.items():
        median = statistics.median(rounds)
        ratio = statistics.median(a / b for a, b in zip(rounds, times[PEER_LOOP], strict=True))
        lines.append(f"| {name} | {median:.0f} | {1000 * batch_size / median:.1f} | {ratio:.2f} |")
    return "\n".join(lines)


def command(args: flags.FlagValues) -> None:
    from snr_jax.runs import experiment

    config = cli.require(args, "config", "--config configs/toy_dg.py")
    checks.check(config)
    if config.loss.target or config.model.norm_restitution != "snr":
        raise UserError("the peer trains an SNR network on the source alone; expected a "
                        "configuration like configs/toy_dg.py")
    load = os.getloadavg()[0]
    source, splits = config.source, experiment.open_splits(config)
    samples = splits["source"].samples
    loops = peer_loops(config, samples, args.workers) | own_loops(config, splits)
    times: dict[str, list[float]] = {name: [] for name in (*loops, WHOLE)}
    for number in range(1, args.rounds + 1):
        for name, (one, wait) in loops.items():
            times[name].append(milliseconds(one, wait, args.steps))
        times[WHOLE].append(whole_run(config, args.steps))
        told = ", ".join(f"{name} {rounds[-1]:.0f}" for name, rounds in times.items())
        print(f"round {number}: {told} ms a step", flush=True)
    import jax

    machine = (f"{os.cpu_count()} cores, {platform.machine()}, {jax.devices()[0].device_kind}, jax "
               f"{jax.__version__}, torch {torch.__version__}, GLIBC_TUNABLES "
               f"{os.environ.get('GLIBC_TUNABLES', '-')}")
    text = (f"{len(samples)} files to {source.size[1]}x{source.size[0]}, batch "
            f"{config.batch_size}; {machine}; load {load:.1f} before; {args.workers} DataLoader "
            f"workers; medians of {args.rounds} rounds of {args.steps} steps\n\n"
            f"{table(times, config.batch_size)}\n")
    print(f"\n{text}")
    if args.out:
        from snr_jax.core.files import write_text

        write_text(Path(args.out), text)


def main(argv: Sequence[str] | None = None) -> int:
    return cli.run(argv, FLAGS, __doc__, command)


if __name__ == "__main__":
    sys.exit(main())
