"""What labels or images may not be meant to be: work goes on, and says so."""

import numpy as np

from snr_jax.core.labels import IGNORE, class_names
from snr_jax.core.shapes import SQUEEZE, is_squeezed
from snr_jax.data.samples import Labels

MOST = 0.5  # of the pixels
AS_STORED = "training and evaluation take the pixels as stored, predict turns them"
MEND_TURNED = "Save the photographs turned, as by mogrify -auto-orient"


def absent(pixels: np.ndarray, labels: Labels) -> list[str]:
    """The classes that no label holds. pixels: int64 [256], by the files' own ids."""
    names = class_names(labels.classes)
    return [name for name, count in zip(names, by_class(pixels, labels)) if not count]


def by_class(pixels: np.ndarray, labels: Labels) -> np.ndarray:
    """int64 [256], by the files' own ids → int64 [256], by trainId."""
    return np.bincount(labels.lookup, weights=pixels, minlength=256).astype(np.int64)


def teaches_one_class(pixels: np.ndarray, labels: Labels) -> bool:
    """Whether all but one class is absent, and numbers that mean none occur."""
    one = len(labels.classes) - len(absent(pixels, labels)) == 1
    return one and bool(pixels[labels.lookup == IGNORE].any())


def label_doubt(pixels: np.ndarray, labels: Labels) -> str | None:
    """Why labels may not be meant as they are read, if so, and the mend.

    They hold one class alone, or 255 is most of what they hold and is ignored: masks of 0 and 255
    often mean an object by it.
    """
    missing, total = absent(pixels, labels), max(pixels.sum(), 1)
    held = [name for name in class_names(labels.classes) if name not in missing]
    ignored = np.flatnonzero((pixels > 0) & (labels.lookup == IGNORE))
    of_255 = pixels[IGNORE] / total if IGNORE in ignored else 0
    reasons = [f"hold one class alone, {held[0]}"] if len(held) == 1 else []
    if len(held) == 1 and ignored.size:
        share = 100 * pixels[ignored].sum() / total
        numbers = ", ".join(map(str, ignored[:8])) + (", ..." if ignored.size > 8 else "")
        which = "" if labels.colors else f" (numbers {numbers})"
        reasons.append(f"{share:.0f} % of their pixels are ignored{which}")
    elif of_255 > MOST and not labels.colors:  # of colours the file says which are ignored
        reasons.append(f"are 255 in {100 * of_255:.0f} % of their pixels, which is ignored")
    if not reasons:
        return None
    text = f"the labels that were looked at {'; '.join(reasons)}"
    if labels.ids != "own":
        return f"{text}. Expected: {labels.layout}"
    if not ignored.size:
        return text
    if labels.colors:
        return f"{text}. If a colour means a class, name it so in the file's key label_colors"
    meant = _meant(pixels, labels, missing)
    return f"{text}. If a number means a class, name it in the file's key ids, as ids: {meant}"


def _meant(pixels: np.ndarray, labels: Labels, missing: list[str]) -> str:
    """The ids that occur with their classes, the ignored ones with those that are missing."""
    names, missing = class_names(labels.classes), iter(missing)
    pairs = []
    for number in np.flatnonzero(pixels)[:8]:
        train_id = labels.lookup[number]
        name = names[train_id] if train_id < len(names) else next(missing, "...")
        pairs.append(f"{number}: {name}")
    return "{" + ", ".join(pairs) + "}"


def turn_doubt(orientations: list[tuple[str, int]]) -> str | None:
    """What to say of images that their EXIF turns. orientations: path and 1 to 8 of each.

    A doubt and no fault: labels may have been drawn on the pixels as they are stored, and public
    sets have the tag with labels that fit those.
    """
    turned = [(path, how) for path, how in orientations if how != 1]
    if not turned:
        return None
    path, how = turned[0]
    return (f"{len(turned)} of {len(orientations)} images are turned or mirrored by their EXIF, "
            f"{path} of orientation {how} the first: {AS_STORED}. {MEND_TURNED}, or remove the "
            "tag where the labels fit the stored pixels")


def shape_doubt(
    sizes: list[tuple[str, tuple[int, int]]], seen: tuple[int, int]
) -> str | None:
    """What to say of images whose shape changes much. sizes: path and (height, width) of each."""
    squeezed = [(path, size) for path, size in sizes if is_squeezed(size, seen)]
    if not squeezed:
        return None
    path, (height, width) = squeezed[0]
    text = (f"to be seen at {seen[0]}x{seen[1]} (height x width), {len(squeezed)} of {len(sizes)} "
            f"images are squeezed or stretched by more than {SQUEEZE}, {path} of {height}x{width} "
            "the first.")
    if not is_squeezed((height, width), seen[::-1]):
        return f"{text} Are height and width of the size exchanged?"
    return f"{text} A size of their shape keeps it"
