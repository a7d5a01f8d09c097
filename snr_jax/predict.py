"""Segment a folder of images.

    python -m snr_jax.predict --checkpoint runs/gta5_dg --images photos --out predictions

For each image, whatever its size, in --out: NAME_color.png (official colours), NAME_overlay.png,
NAME_trainIds.png and NAME_labelIds.png (for the benchmark's server), and with --confidence
NAME_confidence.png (probability of the predicted class, 0-255). Results have the image's size.
"""

import os
import sys
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from PIL import Image, ImageOps, UnidentifiedImageError

from snr_jax import cli, report
from snr_jax.runs import checkpoints, network
from snr_jax.core.errors import UserError
from snr_jax.core.labels import train_id_to_label_id
from snr_jax.core.steps import make_predict_step

SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff", ".ppm"}


def read_image(path: Path) -> Image.Image:
    """An RGB image. Raises UserError, naming the file, if it is none."""
    try:
        with Image.open(path) as image:
            if image.mode.startswith("I"):  # 16 bits, which Pillow would clip
                image = Image.fromarray((np.asarray(image) // 257).astype(np.uint8))
            return ImageOps.exif_transpose(image).convert("RGB")
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError) as error:
        raise UserError(
            f"{path} is no image that can be read ({error}); expected one of "
            f"{', '.join(sorted(SUFFIXES))}. Remove it from the folder or repair it"
        ) from None


def find_images(folder: str) -> list[Path]:
    """The image files of a folder, by name. Raises UserError if there are none."""
    root = Path(folder)
    if not root.is_dir():
        raise UserError(f"--images: there is no folder {folder}")
    found = sorted(path for path in root.iterdir() if path.suffix.lower() in SUFFIXES)
    if not found:
        raise UserError(f"--images: {folder} holds no {', '.join(sorted(SUFFIXES))} file")
    stems = [path.stem for path in found]
    twice = sorted({stem for stem in stems if stems.count(stem) > 1})
    if twice:
        raise UserError(
            f"{folder} holds several images called {twice[0]}; results are named after them. "
            "Rename one"
        )
    return found


def predictions(
    model, variables: dict, paths: list[Path], *, size: tuple[int, int] | None, flip: bool = False
) -> Iterator[tuple[Path, np.ndarray, np.ndarray, np.ndarray]]:
    """Path, image uint8 [H,W,3], trainIds uint8 [H,W], confidence float [H,W] for every file.

    size: what the network sees; None: the image's own.
    """
    probabilities = make_predict_step(model=model, flip=flip)

    @partial(jax.jit, static_argnums=2)
    def predict(variables, image, out_size):
        p = probabilities(variables, image, out_size)[0]
        return p.argmax(-1).astype(jnp.uint8), p.max(-1)

    variables = jax.device_put(variables)
    for path in paths:
        image = read_image(path)
        seen = image if size is None else image.resize(size[::-1], Image.Resampling.BICUBIC)
        classes, confidence = predict(
            variables, np.asarray(seen)[None], (image.height, image.width)
        )
        yield path, np.asarray(image), np.asarray(classes), np.asarray(confidence)


def command() -> None:
    checkpoint = cli.require(CHECKPOINT, "checkpoint", "--checkpoint runs/gta5_dg")
    paths = find_images(cli.require(IMAGES, "images", "--images photos"))
    out = Path(cli.require(OUT, "out", "--out predictions"))
    model, variables, meta = network.load(checkpoint, dtype=DTYPE.value)
    size = _size(SIZE.value, meta)
    out.mkdir(parents=True, exist_ok=True)
    print(f"{checkpoints.find(checkpoint)}: {len(paths)} images, seen by the network at "
          f"{'their own size' if size is None else f'{size[0]}x{size[1]}'}; results go to {out}")
    to_label_id = train_id_to_label_id(model.num_classes)
    start = last_line = time.monotonic()
    results = predictions(model, variables, paths, size=size, flip=FLIP.value)
    for done, (path, image, classes, confidence) in enumerate(results, start=1):
        files = {
            "color": report.colorize(classes, model.num_classes),
            "overlay": report.overlay(image, classes, model.num_classes),
            "trainIds": classes,
            "labelIds": to_label_id[classes],
        }
        if CONFIDENCE.value:
            files["confidence"] = np.rint(confidence * 255).astype(np.uint8)
        for kind, array in files.items():
            _save_whole(array, out / f"{path.stem}_{kind}.png")
        if time.monotonic() - last_line > 5 or done == len(paths):
            last_line = time.monotonic()
            rate = done / (last_line - start)
            left = report.format_duration((len(paths) - done) / rate)
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


if __name__ == "__main__":
    CHECKPOINT = flags.DEFINE_string("checkpoint", None, "A run's folder, or a checkpoint.")
    IMAGES = flags.DEFINE_string("images", None, "Folder with images of any size.")
    OUT = flags.DEFINE_string("out", None, "Folder of the results.")
    SIZE = flags.DEFINE_list(
        "size", None,
        "HEIGHT,WIDTH that the network sees, or own; the target size of its training if none.",
    )
    FLIP = flags.DEFINE_bool("flip", False, "Average with the mirrored image.")
    CONFIDENCE = flags.DEFINE_bool("confidence", False, "Also write confidence maps.")
    DTYPE = flags.DEFINE_enum("dtype", "float32", ["float32", "bfloat16"], "Of the computation.")
    cli.run(sys.argv, __doc__, command)
