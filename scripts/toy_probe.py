"""What the features of a network say of an image as a whole, on the toys of --content tint.

    python scripts/toy_probe.py --data DATA --checkpoint RUN  # in runs/toy_study_tint: data, IN_0

Every image leans to green or to magenta (snr_jax/toy/content.py). A linear probe (ridge regression,
fitted on the training images of the source) guesses which from numbers of each channel over the
image, after each SNR block: its mean; its deviation; and its shape, the third moment and the mean
of what is positive. Prints the share of validation images it is right about; half is chance.
"""

import os
import sys
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from PIL import Image

from snr_jax import cli
from snr_jax.core.augment import to_network_input
from snr_jax.core.errors import UserError
from snr_jax.data.domains import create_domain
from snr_jax.data.samples import list_samples
from snr_jax.runs import network
from snr_jax.toy.content import GREEN

SIZE = (64, 128)  # as the study with --quick trains
BATCH = 20
KINDS = ("mean", "deviation", "shape")
DECAY = 30.0  # of the ridge, on standardised numbers

FLAGS = flags.FlagValues()
cli.define_path("data", None, "Folder that holds the toy source as GTA5.", flag_values=FLAGS)
cli.define_path("checkpoint", None, "The network: a run, or a checkpoint.", flag_values=FLAGS)
cli.define_compilation_cache(FLAGS)


def load(directory: str, split: str) -> tuple[np.ndarray, np.ndarray]:
    """The images, uint8 [N,*SIZE,3], and which of them lean to green."""
    images, green = [], []
    for sample in list_samples(create_domain("gta5", directory), split)[0]:
        image = Image.open(sample.image).convert("RGB")
        green.append((np.asarray(image, np.float32) @ GREEN).mean() > 0)
        images.append(np.asarray(image.resize(SIZE[::-1], Image.Resampling.BICUBIC)))
    return np.stack(images), np.array(green)


def describe(features: jax.Array) -> dict[str, jax.Array]:
    """Name → numbers [N,·] of the channels of features [N,h,w,C] over each image."""
    positive = jnp.maximum(features, 0).mean((1, 2))
    return {"mean": features.mean((1, 2)), "deviation": features.std((1, 2)),
            "shape": jnp.concatenate([positive, (features**3).mean((1, 2))], axis=-1)}


def accuracy(x: np.ndarray, green: np.ndarray, x_val: np.ndarray, green_val: np.ndarray) -> float:
    """Accuracy of the probe that is fitted on x [N,K] and guesses from x_val [M,K]."""
    centre, scale = x.mean(0), x.std(0) + 1e-6
    x, x_val = (x - centre) / scale, (x_val - centre) / scale
    weights = np.linalg.solve(x.T @ x + DECAY * np.eye(x.shape[1]), x.T @ (2.0 * green - 1))
    return float(((x_val @ weights > 0) == green_val).mean())


def command(args: flags.FlagValues) -> None:
    directory = os.path.join(cli.require(args, "data", "--data runs/toy_study_tint/data"), "GTA5")
    checkpoint = cli.require(args, "checkpoint", "--checkpoint runs/toy_study_tint/IN_0")
    cli.use_compilation_cache(args)
    model, variables, _ = network.load(checkpoint)
    if model.norm_restitution == "none":
        raise UserError(f"{checkpoint} has no SNR blocks; expected a network of kind in or snr")

    @jax.jit
    def numbers(images: jax.Array) -> list[dict[str, dict[str, jax.Array]]]:
        seen = to_network_input(images, model.backbone.preprocessing)
        output = model.apply(variables, seen, train=False)
        return [{"after instance norm": describe(block.normalized),
                 "after the block": describe(block.restituted)} for block in output.snr]

    def of_all(images: np.ndarray) -> list:
        parts = [numbers(images[i : i + BATCH]) for i in range(0, len(images), BATCH)]
        return jax.tree.map(lambda *leaves: np.concatenate(leaves), *parts)

    (images, green), (images_val, green_val) = (load(directory, s) for s in ("train", "val"))
    found, found_val = of_all(images), of_all(images_val)
    print(f"{checkpoint}: {len(green)} images, {len(green_val)} to guess, "
          f"{green_val.mean():.0%} of them green\n\n| | {' | '.join(KINDS)} |\n|---|---|---|---|")
    for layer, (places, places_val) in enumerate(zip(found, found_val, strict=True), start=1):
        for place, kinds in places.items():
            right = [accuracy(kinds[kind], green, places_val[place][kind], green_val)
                     for kind in KINDS]
            print(f"| layer {layer}, {place} | {' | '.join(f'{share:.0%}' for share in right)} |")


def main(argv: Sequence[str] | None = None) -> int:
    return cli.run(argv, FLAGS, __doc__, command)


if __name__ == "__main__":
    sys.exit(main())
