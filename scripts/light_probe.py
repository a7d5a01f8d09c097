"""What light costs a network: its scores on its own streets in other light, and the reverse.

    python scripts/light_probe.py --checkpoints runs/plain,runs/snr --domain camvid \
        --dir datasets/CamVid --own day --other dusk

OWN and OTHER name splits of one domain: OWN_train and OWN_val, OTHER_train and OTHER_val. The
validation images of each are scored as they are, and in the light of the other: only colours are
changed, so what a network loses it loses by light alone.

    gain        each image times a number, to the other's mean brightness
    gamma       each image to a power, that which takes its mean there
    histogram   each channel of each image to the other's distribution of values
    statistics  batch norm's running statistics are taken anew, from training images of OWN or OTHER

A markdown table of mIoU in %, a column a network.
"""

import sys
from collections.abc import Callable, Sequence

import jax
import numpy as np
from absl import flags

from snr_jax import cli
from snr_jax.core import metrics
from snr_jax.core.augment import to_network_input
from snr_jax.core.errors import UserError
from snr_jax.core.models.deeplab import DeepLab
from snr_jax.core.steps import make_eval_step
from snr_jax.data import pipeline
from snr_jax.data.domains import create_domain
from snr_jax.data.splits import open_split
from snr_jax.runs import network

BATCH = 16
STATISTICS_STEPS = 60  # after so many the first values weigh 0.9^60
Images = np.ndarray  # uint8 [N,h,w,3]

FLAGS = flags.FlagValues()
flags.DEFINE_list("checkpoints", [], "Networks: runs, or checkpoints.", flag_values=FLAGS)
flags.DEFINE_string("domain", "camvid", "The domain.", flag_values=FLAGS)
cli.define_path("dir", None, "Its folder.", flag_values=FLAGS)
flags.DEFINE_string("own", "day", "Light that the networks were trained in.", flag_values=FLAGS)
flags.DEFINE_string("other", "dusk", "The other light.", flag_values=FLAGS)
cli.define_compilation_cache(FLAGS)


def gain(images: Images, other: Images) -> Images:
    mean = images.mean((1, 2, 3), keepdims=True)
    return _rounded(images * (other.mean() / np.maximum(mean, 1)))


def gamma(images: Images, other: Images) -> Images:
    share = np.maximum(images / 255, 1e-3)
    mean = np.clip(share.mean((1, 2, 3), keepdims=True), 0.01, 0.99)
    return _rounded(255 * share ** (np.log(other.mean() / 255) / np.log(mean)))


def histogram(images: Images, other: Images) -> Images:
    def shares(channel: np.ndarray) -> np.ndarray:
        return np.cumsum(np.bincount(channel.ravel(), minlength=256)) / channel.size

    wanted = [shares(other[..., c]) for c in range(3)]
    result = np.empty_like(images)
    for n, image in enumerate(images):
        for c in range(3):
            # The first value that so many pixels of the other are not brighter than.
            table = np.searchsorted(wanted[c], shares(image[..., c]) - 1e-9)
            result[n, ..., c] = table[image[..., c]]
    return result


LIGHTS = {"gain": gain, "gamma": gamma, "histogram": histogram}


def _rounded(values: np.ndarray) -> np.ndarray:
    return np.clip(np.round(values), 0, 255).astype(np.uint8)


def load(args: flags.FlagValues, split: str, size: tuple, classes: tuple) -> tuple[Images, Images]:
    """The images of a split, and their labels [N,h,w], at the size of training."""
    opened = open_split(create_domain(args.domain, args.dir), split, size=size, classes=classes)
    batches = list(pipeline.eval_batches(opened.samples, opened.labels, size=size, batch_size=1))
    return tuple(np.concatenate([batch[key] for batch in batches]) for key in ("image", "label"))


def scorer(model: DeepLab) -> Callable[[dict, Images, Images], float]:
    """score(variables, images, labels) → mIoU in %."""
    step = jax.jit(make_eval_step(model=model))

    def score(variables: dict, images: Images, labels: Images) -> float:
        total = 0
        for start in range(0, len(images), BATCH):
            image, label = images[start : start + BATCH], labels[start : start + BATCH]
            missing = ((0, BATCH - len(image)), (0, 0), (0, 0))
            total += np.asarray(step(variables, {
                "image": np.pad(image, (*missing, (0, 0))), "label": np.pad(label, missing),
                "valid": np.arange(BATCH) < len(image)}), np.int64)  # fmt: skip
        return 100 * metrics.scores(total)["miou"]

    return score


def with_statistics(model: DeepLab, variables: dict, images: Images) -> dict:
    """The variables with running statistics of these images, drawn in batches of 16."""
    moved = jax.jit(lambda variables, image: model.apply(
        variables, to_network_input(image), train=True, mutable=["batch_stats"])[1])
    random = np.random.default_rng(0)
    for _ in range(STATISTICS_STEPS):
        batch = images[random.choice(len(images), min(BATCH, len(images)), replace=False)]
        variables = {**variables, **moved(variables, batch)}
    return variables


def rows(
    model: DeepLab, variables: dict, own: str, other: str, data: dict[str, tuple[Images, Images]]
) -> dict[str, float]:
    """The title of each row of the table → mIoU in %."""
    score, found = scorer(model), {}
    pairs = ((own, other), (other, own))
    for light, _ in pairs:
        found[light] = score(variables, *data[f"{light}_val"])
    for light, wanted in pairs:
        images, labels = data[f"{light}_val"]
        for name, change in LIGHTS.items():
            changed = change(images, data[f"{wanted}_train"][0])
            found[f"{light}, {name} of {wanted}"] = score(variables, changed, labels)
    for light, _ in pairs:
        anew = with_statistics(model, variables, data[f"{light}_train"][0])
        for scored, _ in pairs:
            found[f"{scored}, statistics of {light}"] = score(anew, *data[f"{scored}_val"])
    return found


def command(args: flags.FlagValues) -> None:
    if not args.checkpoints:
        raise UserError("--checkpoints is missing; for instance --checkpoints runs/camvid_dg")
    cli.require(args, "dir", "--dir datasets/CamVid")
    cli.use_compilation_cache(args)
    splits = [f"{light}_{part}" for light in (args.own, args.other) for part in ("train", "val")]
    table, loaded = {}, {}
    for checkpoint in args.checkpoints:
        model, variables, meta = network.load(checkpoint)
        seen = tuple(meta["source"]["input_size"]), network.classes_of(meta)
        if seen not in loaded:
            loaded[seen] = {split: load(args, split, *seen) for split in splits}
        table[checkpoint] = rows(model, variables, args.own, args.other, loaded[seen])
    print(f"| | {' | '.join(table)} |\n|---|{'---|' * len(table)}")
    for title in next(iter(table.values())):
        numbers = " | ".join(f"{found[title]:.1f}" for found in table.values())
        print(f"| {title} | {numbers} |")


def main(argv: Sequence[str] | None = None) -> int:
    return cli.run(argv, FLAGS, __doc__, command)


if __name__ == "__main__":
    sys.exit(main())
