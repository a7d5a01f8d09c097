"""Tiny data sets on disk, in the true formats, with images that look natural to a resampler."""

from pathlib import Path

import numpy as np
from PIL import Image

from snr_jax.core.labels import CLASSES, ID_TABLES, palette, to_train_id
from snr_jax.data.domains import create_domain
from snr_jax.data.samples import Labels

TRAIN_IDS = to_train_id(ID_TABLES["label_ids"])  # of the files' label ids
LABEL_IDS = np.array([0, 4, *(c.label_id for c in CLASSES)], np.uint8)


def labels_of(domain: str, classes: int = 19) -> Labels:
    known = create_domain(domain)
    return known.labels(known.layouts[0], classes)


def natural_image(seed: int, height: int, width: int) -> np.ndarray:
    """uint8 [H,W,3] with soft and hard edges and a little noise."""
    rng = np.random.default_rng(seed)
    picture = np.full((height, width, 3), 128.0)
    for cells, strength in ((3, 60), (9, 25), (27, 8)):
        coarse = (rng.normal(0, strength, (cells, cells, 3)) + 128).clip(0, 255).astype(np.uint8)
        layer = Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)
        picture += np.asarray(layer, float) - 128
    top, left = height // 3, width // 4
    picture[top : top + height // 4, left : left + width // 3] += 50  # an object with hard edges
    return (picture + rng.normal(0, 1, picture.shape)).clip(0, 255).astype(np.uint8)


def random_ids(seed: int, height: int, width: int, ids: np.ndarray = LABEL_IDS) -> np.ndarray:
    return np.random.default_rng([seed, 1]).choice(ids, (height, width))


def save_palette(ids: np.ndarray, path: Path, **options) -> None:
    image = Image.fromarray(ids).convert("P")
    image.putdata(ids.ravel().tolist())
    image.putpalette(palette()[: options.pop("num_colors", 256)].ravel().tolist())
    image.save(path, **options)


def write_gta5(folder: Path, ids=range(1, 6), height=24, width=40) -> Path:
    """The directory of a GTA5 set with these frames, without lists."""
    root = folder / "GTA5"
    for kind in ("images", "labels"):
        (root / kind).mkdir(parents=True)
    for number in ids:
        image = Image.fromarray(natural_image(number, height, width))
        image.save(root / "images" / f"{number:05d}.png")
        save_palette(random_ids(number, height, width), root / "labels" / f"{number:05d}.png")
    return root


def write_cityscapes(folder: Path, count=5, split="val", height=24, width=48, labels=True) -> Path:
    """The directory of a Cityscapes set with one split of two cities."""
    root = folder / "Cityscapes"
    for number in range(count):
        city = ("aachen", "zurich")[number % 2]
        id = f"{city}_{number:06d}_000019"
        for kind in ("leftImg8bit", "gtFine"):
            (root / kind / split / city).mkdir(parents=True, exist_ok=True)
        seed = number + 100 * (split == "train")  # no image stands in two splits
        image = Image.fromarray(natural_image(seed, height, width))
        image.save(root / "leftImg8bit" / split / city / f"{id}_leftImg8bit.png")
        if labels:
            label = Image.fromarray(random_ids(number, height, width))
            label.save(root / "gtFine" / split / city / f"{id}_gtFine_labelIds.png")
    return root


def write_two_classes(folder: Path, seed: int, count: int = 3) -> Path:
    """data.yaml with images and masks of two classes in the splits train and val."""
    for start, split in ((0, "train"), (50, "val")):
        for number in range(count):
            image = natural_image(100 * seed + start + number, 33, 65)
            mask = np.where(random_ids(seed + number, 33, 65) % 2, 9, 0).astype(np.uint8)
            for kind, pixels in (("images", image), ("masks", mask)):
                (folder / kind / split).mkdir(parents=True, exist_ok=True)
                Image.fromarray(pixels).save(folder / kind / split / f"{number}.png")
    (folder / "data.yaml").write_text(
        "images: images/{split}/*.png\nlabels: masks/{split}/*.png\nsplits: [train, val]\n"
        "classes: {ground: , thing: }\nids: {0: ground, 9: thing}\n"
    )
    return folder / "data.yaml"


def write_masks(folder: Path, *, count=4, ids="{0: background, 255: target}", inside=255) -> str:
    """The YAML file of a set of photos of 40x80 whose masks are 0, and `inside` in the right half.

    ids: of the file, "" for none.
    """
    for seed, split in enumerate(("train", "val")):
        for kind in ("images", "masks"):
            (folder / kind / split).mkdir(parents=True)
        for number in range(count):
            photo = Image.fromarray(natural_image(100 * seed + number, 40, 80))
            photo.save(folder / "images" / split / f"{number}.png")
            mask = np.zeros((40, 80), np.uint8)
            mask[:, 40:] = inside
            Image.fromarray(mask).save(folder / "masks" / split / f"{number}.png")
    lines = ["images: images/{split}/*.png", "labels: masks/{split}/*.png", "splits: [train, val]",
             "classes: {background: , target: }", *([f"ids: {ids}"] if ids else [])]
    (folder / "set.yaml").write_text("\n".join(lines))
    return str(folder / "set.yaml")
