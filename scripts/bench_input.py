"""Input speed: this project's streams against torch's DataLoader with Pillow, as the lineage loads.

    python scripts/bench_input.py --images 32 --rounds 3 --workers 2

Both read the same 1914x1052 PNG files in the layout of GTA5, drawn into a temporary directory.
The lineage mirrors, resizes, blurs, converts and subtracts the mean on the CPU; this project hands
over uint8 and does blur and mean inside the compiled step, which is not timed here.
The project's streams are from the files, and from prepared data, raw and PNG. All take turns, round
by round; the median rates and ratios are printed.
"""

import os
import platform
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from absl import flags
from PIL import Image, ImageFilter

from snr_jax import cli
from snr_jax.core.labels import CLASSES, palette
from snr_jax.data.domains import DOMAINS, list_samples
from snr_jax.data.samples import Listing, Sample

if TYPE_CHECKING:  # it starts TensorFlow
    from snr_jax.data.prepared import Prepared

WIDTH, HEIGHT = 1914, 1052
MEAN_BGR = np.array((104.00698793, 116.66876762, 122.67891434), np.float32)
SIZE = DOMAINS["gta5"].train_size

FLAGS = flags.FlagValues()
flags.DEFINE_integer(
    "images", 32, "Files, and images timed per round.", lower_bound=1, flag_values=FLAGS)
flags.DEFINE_integer("rounds", 3, "Of both, in turns.", lower_bound=1, flag_values=FLAGS)
flags.DEFINE_integer(
    "workers", os.cpu_count(), "DataLoader processes.", lower_bound=1, flag_values=FLAGS)


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
    rng = np.random.default_rng(0)
    (directory / "images").mkdir()
    (directory / "labels").mkdir()
    for number in range(1, count + 1):
        image, label = draw_frame(rng)
        image.save(directory / "images" / f"{number:05d}.png")
        label.save(directory / "labels" / f"{number:05d}.png")
    return list_samples("gta5", str(directory), "train")


class LineageDataset(torch.utils.data.Dataset):
    """What the published loaders do for one sample."""

    def __init__(self, samples: list[Sample]) -> None:
        self.samples = samples

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        image = Image.open(self.samples[index].image).convert("RGB")
        label = Image.open(self.samples[index].label)
        if random.random() < 0.5:
            image = image.transpose(Image.FLIP_LEFT_RIGHT)
            label = label.transpose(Image.FLIP_LEFT_RIGHT)
        image = image.resize((SIZE[1], SIZE[0]), Image.BICUBIC)
        label = label.resize((SIZE[1], SIZE[0]), Image.NEAREST)
        if random.random() < 0.5:
            image = image.filter(ImageFilter.GaussianBlur(radius=random.random()))
        pixels = np.asarray(image, np.float32)[:, :, ::-1] - MEAN_BGR
        chw = np.ascontiguousarray(pixels.transpose(2, 0, 1))
        ids = np.asarray(label, np.float32)
        train_ids = np.full(ids.shape, -1, np.float32)
        for train_id, c in enumerate(CLASSES):
            train_ids[ids == c.label_id] = train_id
        return torch.from_numpy(chw), torch.from_numpy(train_ids)


def prepare_data(folder: str, workers: int) -> dict[str, "Prepared"]:
    """The data of `write_data` as prepared data of both forms."""
    from snr_jax.data import preparing
    from snr_jax.data.prepared import open_prepared
    from snr_jax.runs.record import identity

    found = {}
    for images in preparing.IMAGE_KINDS:
        out = Path(folder) / "prepared" / images
        start = time.perf_counter()
        preparing.prepare(
            DOMAINS["gta5"], folder, out, splits=["train"], size=SIZE, images=images,
            workers=workers, identify=identity, log=lambda line: None,
        )
        seconds = time.perf_counter() - start
        size = sum(path.stat().st_size for path in out.rglob("*.array_record*")) / 1e6
        print(f"prepared {images}: {size:.0f} MB, made in {seconds:.0f} s", flush=True)
        found[f"prepared {images}"] = open_prepared(
            out, DOMAINS["gta5"], folder, "train", size=SIZE, classes=19
        )[2]
    return found


def images_per_second(batches: Iterable, warm_up: int, count: int) -> float:
    """Over `count` batches of one image, after `warm_up` that fill the queues."""
    iterator = iter(batches)
    for _ in range(warm_up):
        next(iterator)
    start = time.perf_counter()
    for _ in range(count):
        next(iterator)
    return count / (time.perf_counter() - start)


def command(args: flags.FlagValues) -> None:
    with tempfile.TemporaryDirectory() as folder:
        samples, labels, _ = write_data(Path(folder), args.images)
        megabytes = sum(os.path.getsize(s.image) for s in samples) / len(samples) / 1e6
        warm_up = 4 * args.workers
        repeated = (samples * (warm_up // len(samples) + 2))[: args.images + warm_up + 8]
        loader = torch.utils.data.DataLoader(
            LineageDataset(repeated),
            batch_size=1,
            shuffle=True,
            num_workers=args.workers,
            persistent_workers=True,
        )
        next(iter(loader))  # forks the workers before TensorFlow has threads
        from snr_jax.data.pipeline import train_batches

        sources = {"files": None, **prepare_data(folder, args.workers)}
        rates = []
        for number in range(1, args.rounds + 1):
            rates.append([images_per_second(loader, warm_up, args.images)])
            for prepared in sources.values():
                stream = train_batches(
                    samples, labels, size=SIZE, batch_size=1, seed=number, prepared=prepared
                )
                rates[-1].append(images_per_second(stream, warm_up, args.images))
                stream.close()
            of_round = zip(["DataLoader", *sources], rates[-1], strict=True)
            told = ", ".join(f"{name} {rate:.1f}" for name, rate in of_round)
            print(f"round {number}: {told} images/s", flush=True)
    lineage, *ours = (statistics.median(column) for column in zip(*rates))
    print(
        f"{args.images} PNG files of {WIDTH}x{HEIGHT}, {megabytes:.1f} MB, to {SIZE[1]}x{SIZE[0]}; "
        f"{platform.machine()}, {os.cpu_count()} cores, {args.workers} DataLoader workers\n"
        f"torch DataLoader + Pillow: {lineage:.1f} images/s, "
        f"{lineage / os.cpu_count():.1f} per core"
    )
    for column, (name, rate) in enumerate(zip(sources, ours, strict=True), 1):
        ratio = statistics.median(row[column] / row[0] for row in rates)
        each = rate / os.cpu_count()
        print(f"tf.data, {name}: {rate:.1f} images/s, {each:.1f} per core, ratio {ratio:.2f}")


def main(argv: Sequence[str] | None = None) -> int:
    return cli.run(argv, FLAGS, __doc__, command)


if __name__ == "__main__":
    sys.exit(main())
