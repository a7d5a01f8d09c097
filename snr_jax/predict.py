"""Segment a folder of images.

    python -m snr_jax.predict --checkpoint runs/gta5_dg --images photos --out predictions

For each image, whatever its size, in --out: NAME_color.png (official colours), NAME_overlay.png,
NAME_trainIds.png and NAME_labelIds.png (for the benchmark's server), and with --confidence
NAME_confidence.png (probability of the predicted class, 0-255). Results have the image's size.
"""

import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from absl import flags
from PIL import Image

from snr_jax import cli
from snr_jax.core.errors import UserError
from snr_jax.core.labels import train_id_to_label_id
from snr_jax.report.pictures import colorize, overlay
from snr_jax.report.tables import format_duration
from snr_jax.runs import checkpoints, network
from snr_jax.runs.prediction import find_images, predictions

FLAGS = flags.FlagValues()
flags.DEFINE_string("checkpoint", None, "A run's folder, or a checkpoint.", flag_values=FLAGS)
flags.DEFINE_string("images", None, "Folder with images of any size.", flag_values=FLAGS)
flags.DEFINE_string("out", None, "Folder of the results.", flag_values=FLAGS)
flags.DEFINE_list(
    "size", None,
    "HEIGHT,WIDTH that the network sees, or own; the target size of its training if none.",
    flag_values=FLAGS,
)
flags.DEFINE_bool("flip", False, "Average with the mirrored image.", flag_values=FLAGS)
flags.DEFINE_bool("confidence", False, "Also write confidence maps.", flag_values=FLAGS)
flags.DEFINE_enum(
    "dtype", "float32", ["float32", "bfloat16"], "Of the computation.",
    flag_values=FLAGS,
)


def command(args: flags.FlagValues) -> None:
    checkpoint = checkpoints.find(cli.require(args, "checkpoint", "--checkpoint runs/gta5_dg"))
    paths = find_images(cli.require(args, "images", "--images photos"))
    out = Path(cli.require(args, "out", "--out predictions"))
    model, variables, meta = network.load(checkpoint, dtype=args.dtype)
    size = _size(args.size, meta)
    out.mkdir(parents=True, exist_ok=True)
    print(f"{checkpoint.path}: {len(paths)} images, seen by the network at "
          f"{'their own size' if size is None else f'{size[0]}x{size[1]}'}; results go to {out}")
    to_label_id = train_id_to_label_id(model.num_classes)
    start = last_line = time.monotonic()
    results = predictions(model, variables, paths, size=size, flip=args.flip)
    for done, (path, image, classes, confidence) in enumerate(results, start=1):
        files = {
            "color": colorize(classes, model.num_classes),
            "overlay": overlay(image, classes, model.num_classes),
            "trainIds": classes,
            "labelIds": to_label_id[classes],
        }
        if args.confidence:
            files["confidence"] = np.rint(confidence * 255).astype(np.uint8)
        for kind, array in files.items():
            _save_whole(array, out / f"{path.stem}_{kind}.png")
        if time.monotonic() - last_line > 5 or done == len(paths):
            last_line = time.monotonic()
            rate = done / (last_line - start)
            left = format_duration((len(paths) - done) / rate)
            print(f"{done}/{len(paths)} images, {rate:.2f}/s, {left} left", flush=True)


def _size(value: list[str] | None, meta: dict) -> tuple[int, int] | None:
    if value == ["own"]:
        return None
    if value is None:
        recorded = meta.get("source", {}).get("input_size")
        return tuple(recorded) if recorded else None
    try:
        height, width = map(int, value)
        if min(height, width) < 33:
            raise ValueError
    except ValueError:
        raise UserError(
            f"--size is {','.join(value)}; expected HEIGHT,WIDTH in pixels, as 512,1024, of at "
            "least 33 each, or own"
        ) from None
    return height, width


def _save_whole(array: np.ndarray, path: Path) -> None:
    temporary = path.with_suffix(f".tmp-{os.getpid()}")
    try:
        Image.fromarray(array).save(temporary, format="PNG")
        temporary.replace(path)
    except OSError as error:
        raise UserError(f"{path} could not be written: {error}") from None
    finally:
        temporary.unlink(missing_ok=True)


def main(argv: Sequence[str] | None = None) -> int:
    return cli.run(argv, FLAGS, __doc__, command)


if __name__ == "__main__":
    sys.exit(main())
