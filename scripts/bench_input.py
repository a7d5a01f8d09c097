"""Input speed: this project's streams against torch's DataLoader with Pillow, as the lineage loads.

On a machine that does nothing else, with torch installed:

    python scripts/bench_input.py --images 32 --rounds 5 --workers 2 --out runs/bench_input/table.md

All read the same PNG files of 1914x1052, the size of GTA5 and in its layout, for training at
1280x720. The files and the prepared data, raw and PNG, are made once, in DIR/IMAGES, and reused by
the next call.
The lineage mirrors, resizes, blurs, converts and subtracts the mean on the CPU; this project hands
over uint8 and does blur and mean inside the compiled step, which is not timed here.
All take turns, round by round. A table in markdown is printed, and written to --out: the median
rates and the median ratios of a round, beside the goals, 2 from the files and 6 from prepared data;
and the time of a core that an image takes, of this process and its workers, which other programs
disturb less. Rates per core on fewer cores, which should be those on all:

    taskset -c 0 python scripts/bench_input.py --workers 1
"""

import os
import platform
import statistics
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import psutil
import torch
from absl import flags
from PIL import Image

from snr_jax import cli
from snr_jax.core.files import write_text, written_whole
from snr_jax.core.labels import CLASSES, palette
from snr_jax.data.domains import DOMAINS, create_domain
from snr_jax.data.samples import Listing, list_samples
from twin.loader import LineageDataset

if TYPE_CHECKING:  # it starts TensorFlow
    from snr_jax.data.prepared.reading import Prepared

WIDTH, HEIGHT = 1914, 1052
SIZE = DOMAINS["gta5"].train_size
PEER = "DataLoader + Pillow"
CORES = len(os.sched_getaffinity(0))
GOALS = {"files": 2, "prepared raw": 6, "prepared png": 6}  # times the peer's rate

FLAGS = flags.FlagValues()
flags.DEFINE_integer(
    "images", 32, "Image files to draw, and to read in a round.", lower_bound=1, flag_values=FLAGS)
flags.DEFINE_integer("rounds", 3, "Rounds of all, in turns.", lower_bound=1, flag_values=FLAGS)
flags.DEFINE_integer(
    "workers", CORES, "PyTorch's DataLoader processes.", lower_bound=1, flag_values=FLAGS)
cli.define_path("dir", "runs/bench_input", "Folder for the image files.", flag_values=FLAGS)
cli.define_path("out", "", "File for the table, which is printed as well.", flag_values=FLAGS)


def draw_frame(rng: np.random.Generator) -> tuple[Image.Image, Image.Image]:
    """An image with the spectrum of a photograph (2-3 MB as PNG), and regions as its label."""
    picture = np.zeros((HEIGHT, WIDTH, 3), np.float32)
    for cells, strength in ((4, 70), (16, 35), (64, 18), (256, 9)):
        coarse = rng.normal(0, strength, (cells, cells * 2, 3)).clip(-127, 127) + 128
        layer = Image.fromarray(coarse.astype(np.uint8)).resize((WIDTH, HEIGHT), Image.BICUBIC)
        picture += np.asarray(layer, np.float32) - 128
    picture += rng.normal(0, 2, picture.shape)
    image = Image.fromarray((picture + 128).clip(0, 255).astype(np.uint8))
    ids = np.array([c.label_id for c in CLASSES], np.uint8)
    regions = Image.fromarray(rng.choice(ids, (40, 60))).resize((WIDTH, HEIGHT), Image.NEAREST)
    label = Image.fromarray(np.asarray(regions).copy(), mode="P")
    label.putpalette(palette().ravel().tolist())
    return image, label


def write_data(directory: Path, count: int) -> Listing:
    """Draws the frames that are not there yet."""
    for kind in ("images", "labels"):
        (directory / kind).mkdir(parents=True, exist_ok=True)
    for number in range(1, count + 1):
        paths = [directory / kind / f"{number:05d}.png" for kind in ("images", "labels")]
        if not all(path.exists() for path in paths):
            for drawn, path in zip(draw_frame(np.random.default_rng(number)), paths, strict=True):
                with written_whole(path) as unfinished:
                    drawn.save(unfinished, format="png")
    return list_samples(create_domain("gta5", directory), "train")


def prepare_data(folder: Path, workers: int) -> dict[str, "Prepared"]:
    """The data of `write_data` as prepared data of both forms; what is there is checked alone."""
    from snr_jax.data.prepared import writing
    from snr_jax.data.prepared.reading import open_prepared
    from snr_jax.workdir.record import identity

    found = {}
    for images in writing.IMAGE_KINDS:
        out = folder / "prepared" / images
        start = time.perf_counter()
        writing.prepare(
            create_domain("gta5", folder), out, splits=["train"], size=SIZE, images=images,
            workers=workers, identify=identity,
        )
        seconds = time.perf_counter() - start
        size = sum(path.stat().st_size for path in out.rglob("*.array_record*")) / 1e6
        print(f"prepared {images}: {size:.0f} MB, {seconds:.0f} s", flush=True)
        found[f"prepared {images}"] = open_prepared(
            out, create_domain("gta5", folder), "train", size=SIZE, classes=19
        )[2]
    return found


class Speed(NamedTuple):
    images_per_second: float
    core_ms: float  # an image


def core_seconds() -> float:
    """Time of all cores that this process and its workers have had."""
    this = psutil.Process()
    return sum(sum(process.cpu_times()[:2]) for process in (this, *this.children()))


def speed(batches: Iterable, warm_up: int, count: int) -> Speed:
    """Over `count` batches of one image, after `warm_up` that fill the queues."""
    iterator = iter(batches)
    for _ in range(warm_up):
        next(iterator)
    start, start_cores = time.perf_counter(), core_seconds()
    for _ in range(count):
        next(iterator)
    seconds = time.perf_counter() - start
    return Speed(count / seconds, 1000 * (core_seconds() - start_cores) / count)


def table(speeds: Mapping[str, Sequence[Speed]], cores: int) -> str:
    """Markdown. speeds: stream → by round; the first is what the others are measured by."""
    lines = ["| | images/s | per core | ratio | goal | core ms an image | ratio |",
             "|---|---|---|---|---|---|---|"]
    first = next(iter(speeds.values()))
    median = statistics.median
    for name, of_stream in speeds.items():
        pairs = list(zip(of_stream, first, strict=True))
        rate, core_ms = (median(values) for values in zip(*of_stream, strict=True))
        ratio = median(one.images_per_second / peer.images_per_second for one, peer in pairs)
        saved = median(peer.core_ms / one.core_ms for one, peer in pairs)
        lines.append(f"| {name} | {rate:.1f} | {rate / cores:.1f} | {ratio:.2f} | "
                     f"{GOALS.get(name, '')} | {core_ms:.0f} | {saved:.2f} |")
    return "\n".join(lines)


def command(args: flags.FlagValues) -> None:
    load = os.getloadavg()[0]
    folder = Path(args.dir) / str(args.images)
    samples, labels, _ = write_data(folder, args.images)
    megabytes = sum(os.path.getsize(s.image) for s in samples) / len(samples) / 1e6
    warm_up = 4 * args.workers
    repeated = (samples * (warm_up // len(samples) + 2))[: args.images + warm_up + 8]
    loader = torch.utils.data.DataLoader(
        LineageDataset(repeated, SIZE),
        batch_size=1,
        shuffle=True,
        num_workers=args.workers,
        persistent_workers=True,
    )
    next(iter(loader))  # forks the workers before TensorFlow has threads
    from snr_jax.data.pipeline import train_batches

    prepared = prepare_data(folder, args.workers)
    sources = {"files": None, **prepared}
    speeds = {name: [] for name in (PEER, *sources)}
    for number in range(1, args.rounds + 1):
        speeds[PEER].append(speed(loader, warm_up, args.images))
        for name, where in sources.items():
            stream = train_batches(
                samples, labels, size=SIZE, batch_size=1, seed=number, prepared=where
            )
            speeds[name].append(speed(stream, warm_up, args.images))
            stream.close()
        told = ", ".join(f"{name} {of_stream[-1].images_per_second:.1f}"
                         for name, of_stream in speeds.items())
        print(f"round {number}: {told} images/s", flush=True)
    text = (
        f"{args.images} PNG files of {WIDTH}x{HEIGHT}, {megabytes:.1f} MB, to {SIZE[1]}x{SIZE[0]}; "
        f"{platform.machine()}, {CORES} cores, load {load:.1f} before; "
        f"{args.workers} DataLoader workers; medians of {args.rounds} rounds\n\n"
        f"{table(speeds, CORES)}\n"
    )
    print(f"\n{text}")
    if args.out:
        write_text(Path(args.out), text)


def main(argv: Sequence[str] | None = None) -> int:
    return cli.run(argv, FLAGS, __doc__, command)


if __name__ == "__main__":
    sys.exit(main())
