"""Toy domains: procedural streets in several styles, in the layouts of GTA5 and Cityscapes.

Content (toy_scenes.py) depends on (seed, index) alone, style on a literal table here; so the
same street can be had in every style, with the same labels. Needs numpy and Pillow only.
"""

import json
import os
import shutil
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageFilter

from snr_jax.core import labels
from snr_jax.toy.render import LABEL_IDS, Scene
from snr_jax.toy.scenes import draw_scene
from snr_jax.core.errors import UserError

DRAWING = 1  # raise it when the same arguments draw other pixels
MARKER = "toy.json"  # in the root of every toy data set: the arguments that made it
CITIES = {"train": ("toyburg", "pixelstadt", "rasterheim"), "val": ("bitmuende", "vectorbach")}
# First scene index of each split: far enough apart that no street is in two of them.
FIRST_INDEX = {"source train": 0, "source val": 10**6, "target train": 2 * 10**6,
               "target val": 3 * 10**6}  # fmt: skip


class Style(NamedTuple):
    """How a street looks. Colours are RGB factors; `jitter_*` vary from image to image."""

    ambient: tuple[float, float, float]  # light that arrives everywhere
    sun: tuple[float, float, float]  # light on faces that look at the sun
    tints: dict[str, tuple[float, float, float]]  # class → factor on its colour
    headlight: float = 0.0  # light of the own car, falling off within about 12 m
    texture: float = 1.0  # gain of fine detail
    haze: float = 0.0  # extinction, 1/m
    air: tuple[float, float, float] = (0.8, 0.85, 0.9)  # colour that haze fades to
    contrast: float = 1.0  # about mid-grey
    saturation: float = 1.0  # 0: grey
    gamma: float = 0.65  # exponent; below 1 brightens the shadows
    blur: float = 0.0  # pixels at a width of 256
    noise: float = 0.0  # standard deviation, of the full range
    jitter_exposure: float = 0.1  # standard deviation of the logarithm
    jitter_balance: float = 0.03  # … of each channel's logarithm
    jitter_gamma: float = 0.05  # … of the exponent's logarithm
    jitter_haze: float = 0.3  # … of the extinction's logarithm


STYLES = {
    "source": Style(  # a game: crisp, saturated, contrasty, warm sun, all times of a fine day
        ambient=(0.40, 0.42, 0.48), sun=(0.75, 0.70, 0.60), tints={}, contrast=1.15,
        saturation=1.3, haze=0.001, noise=0.01, jitter_exposure=0.18, jitter_balance=0.06,
        jitter_gamma=0.15, jitter_haze=0.8,
    ),
    "clear": Style(  # a real camera at noon: softer, cooler, greener, less colour
        ambient=(0.40, 0.46, 0.47), sun=(0.46, 0.52, 0.50), contrast=0.88, saturation=0.75,
        tints={"road": (1.2, 1.2, 1.15), "vegetation": (0.8, 0.85, 0.95),
               "building": (0.9, 0.95, 1.0), "sky": (1.15, 1.1, 1.05)},
        texture=0.8, haze=0.003, blur=0.5, noise=0.018,
    ),
    "dusk": Style(  # low orange sun, violet shadows, bright horizon
        ambient=(0.32, 0.26, 0.34), sun=(0.62, 0.36, 0.18), contrast=1.0, saturation=0.9,
        tints={"sky": (1.2, 1.15, 1.15), "vegetation": (1.05, 0.85, 0.85)},
        haze=0.004, air=(0.75, 0.48, 0.38), blur=0.4, noise=0.02,
    ),
    "haze": Style(  # everything fades to grey within a hundred metres
        ambient=(0.58, 0.58, 0.58), sun=(0.15, 0.15, 0.15), tints={}, contrast=0.95,
        saturation=0.7, haze=0.018, air=(0.70, 0.72, 0.73), texture=0.9, blur=0.5, noise=0.015,
    ),
    "night": Style(  # blue, dark, noisy; only what the headlights reach has colour
        ambient=(0.09, 0.11, 0.19), sun=(0.03, 0.04, 0.07), headlight=0.4, saturation=0.75,
        tints={"sky": (0.6, 0.6, 0.7), "light": (2.5, 2.5, 2.5)},
        contrast=1.0, gamma=0.6, blur=0.4, noise=0.028,
    ),
}  # fmt: skip


def _style(name: str) -> Style:
    if name not in STYLES:
        raise UserError(f"no toy style {name!r}; there are {', '.join(STYLES)}")
    return STYLES[name]


def apply_style(scene: Scene, style: str, rng: np.random.Generator) -> np.ndarray:
    """The scene as a camera of that style sees it, uint8 [H,W,3] RGB; jitter and noise from rng.

    Raises UserError for a style that STYLES does not name.
    """
    look = _style(style)
    size = scene.albedo.shape[1] / 256  # blurs scale with the image
    exposure = np.exp(look.jitter_exposure * rng.standard_normal())
    balance = np.exp(look.jitter_balance * rng.standard_normal(3)).astype(np.float32)
    gamma = look.gamma * np.exp(look.jitter_gamma * rng.standard_normal())
    haze = look.haze * np.exp(look.jitter_haze * rng.standard_normal())

    tints = np.ones((256, 3), np.float32)
    for name, tint in look.tints.items():
        tints[LABEL_IDS[name]] = tint
    color = scene.albedo
    if look.texture != 1:
        base = _blurred(_to_uint8(color), 1.5 * size).astype(np.float32) / 255
        color = base + look.texture * (color - base)
    color = color * tints[scene.label_ids]
    light = np.float32(look.ambient) + np.float32(look.sun) * scene.light[..., None]
    light += (look.headlight * np.exp(scene.depth / -12))[..., None]
    color = color * light
    if haze:
        clear = np.exp(-haze * scene.depth)[..., None]
        color = clear * color + (1 - clear) * np.float32(look.air)
    color = np.clip(color * np.float32(exposure) * balance, 0, 1) ** np.float32(gamma)
    color = 0.5 + look.contrast * (color - 0.5)
    grey = color.mean(axis=-1, keepdims=True)
    color = grey + look.saturation * (color - grey)
    image = _blurred(_to_uint8(color), look.blur * size).astype(np.float32) / 255
    return _to_uint8(image + look.noise * rng.standard_normal(image.shape, np.float32))


def _to_uint8(image: np.ndarray) -> np.ndarray:
    return (np.clip(image, 0, 1) * 255 + 0.5).astype(np.uint8)


def _blurred(image: np.ndarray, radius: float) -> np.ndarray:
    return np.asarray(Image.fromarray(image).filter(ImageFilter.GaussianBlur(radius)))


def draw_pair(seed: int, index: int, height: int, width: int, style: str):
    """Image uint8 [H,W,3] RGB and label ids uint8 [H,W] of one street in one style."""
    scene = draw_scene(seed, index, height, width)
    return apply_style(scene, style, np.random.default_rng((seed, index, 1))), scene.label_ids


def _gta5_label(label_ids: np.ndarray) -> Image.Image:
    """The palette image that GTA5 stores: the indices are label ids, the colours official."""
    colors = np.zeros((256, 3), np.uint8)
    for c in labels.CLASSES:
        colors[c.label_id] = c.color
    image = Image.fromarray(label_ids, "P")
    image.putpalette(colors.tobytes())
    return image


def _write_pair(job, *, seed, height, width, style, as_label):
    index, image_path, label_path = job
    image, label_ids = draw_pair(seed, index, height, width, style)
    Image.fromarray(image).save(image_path, compress_level=3)
    as_label(label_ids).save(label_path, bits=8)


def write_gta5(directory: str | Path, *, num_train: int, num_val: int, seed: int, height: int,
               width: int, style: str = "source", **how) -> bool:  # fmt: skip
    """Writes images/, labels/, train.txt, val.txt as GTA5 has them; see `_write` for the rest."""
    names = [f"{number:05d}" for number in range(1, num_train + num_val + 1)]
    first = FIRST_INDEX["source train"], FIRST_INDEX["source val"] - num_train
    jobs = [(first[i >= num_train] + i, f"images/{name}.png", f"labels/{name}.png")
            for i, name in enumerate(names)]  # fmt: skip
    lists = {"train.txt": names[:num_train], "val.txt": names[num_train:]}
    made = {"layout": "GTA5", "num_train": num_train, "num_val": num_val}
    draw = {"seed": seed, "height": height, "width": width, "style": style}
    return _write(Path(directory), jobs, lists, made, draw, as_label=_gta5_label, **how)


def write_cityscapes(directory: str | Path, *, style: str, num_train: int, num_val: int, seed: int,
                     height: int, width: int, **how) -> bool:  # fmt: skip
    """Writes leftImg8bit/ and gtFine/ as Cityscapes has them; see `_write` for the rest."""
    jobs = []
    for split, number in (("train", num_train), ("val", num_val)):
        for i in range(number):
            city = CITIES[split][i % len(CITIES[split])]
            stem = f"{split}/{city}/{city}_{i // len(CITIES[split]):06d}_000019"
            jobs.append((FIRST_INDEX[f"target {split}"] + i, f"leftImg8bit/{stem}_leftImg8bit.png",
                         f"gtFine/{stem}_gtFine_labelIds.png"))  # fmt: skip
    made = {"layout": "Cityscapes", "num_train": num_train, "num_val": num_val}
    draw = {"seed": seed, "height": height, "width": width, "style": style}
    return _write(Path(directory), jobs, {}, made, draw, as_label=Image.fromarray, **how)


def _write(
    directory: Path,
    jobs: list[tuple[int, str, str]],
    lists: dict[str, list[str]],
    made: dict,
    draw: dict,
    *,
    as_label: Callable[[np.ndarray], Image.Image],
    workers: int = 1,
    replace: bool = False,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> bool:
    """Draws all jobs, by `workers` processes, beside `directory` and renames at the end.

    Returns False, and draws nothing, where the same arguments were drawn before. Raises
    UserError where the directory holds anything else; `replace` overwrites another toy set.
    """
    record = {**made, **draw, "drawing": DRAWING, "look": _style(draw["style"])._asdict()}
    record = json.loads(json.dumps(record))
    if _is_there(directory, record, replace):
        return False
    partial_directory = directory.with_name(directory.name + ".partial")
    shutil.rmtree(partial_directory, ignore_errors=True)
    partial_directory.mkdir(parents=True)
    for name in {os.path.dirname(path) for job in jobs for path in job[1:]}:
        (partial_directory / name).mkdir(parents=True, exist_ok=True)
    placed = [(i, partial_directory / image, partial_directory / label) for i, image, label in jobs]
    write_pair = partial(_write_pair, **draw, as_label=as_label)
    if workers > 1:
        with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
            for done, _ in enumerate(pool.map(write_pair, placed, chunksize=8), 1):
                progress(done, len(placed))
    else:
        for done, job in enumerate(placed, 1):
            write_pair(job)
            progress(done, len(placed))
    for name, lines in lists.items():
        (partial_directory / name).write_text("".join(f"{line}\n" for line in lines))
    (partial_directory / MARKER).write_text(json.dumps(record, indent=1) + "\n")
    if directory.exists():
        shutil.rmtree(directory)
    partial_directory.rename(directory)
    return True


def _is_there(directory: Path, record: dict, replace: bool) -> bool:
    if not directory.exists() or (directory.is_dir() and not any(directory.iterdir())):
        return False
    marker = directory / MARKER
    if not marker.is_file():
        raise UserError(
            f"{directory} exists and is no toy data set (it has no {MARKER}); it is left alone. "
            "Choose another --out, or move it away"
        )
    found = json.loads(marker.read_text())
    if found == record:
        return True
    if not replace:
        different = [k for k in record if found.get(k) != record[k]]
        raise UserError(
            f"{directory} holds another toy data set (different: {', '.join(different)}). "
            "Choose another --out, or draw it anew with --replace"
        )
    return False
