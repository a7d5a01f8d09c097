"""Segmentation of image files of any size."""

from collections.abc import Iterator
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from snr_jax.core.errors import UserError
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
