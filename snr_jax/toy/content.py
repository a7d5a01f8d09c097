"""What an image as a whole says about its classes, alike in every style.

    none  nothing: a drawing is one class, wherever it stands
    tint  the mean colour of the image, green or magenta, says which of two classes a drawing is

With "tint" the labels of each pair of PAIRS are exchanged in every second image, drawn by chance,
and that image leans to magenta where the others lean to green, by LEAN, after its style. Stains of
both colours and of mean zero, strong beside LEAN, lie over every image: the colour of a small patch
is right about it four times in five, the mean of the image always.
"""

import numpy as np
from PIL import Image

from snr_jax.core.errors import UserError
from snr_jax.toy.render import LABEL_IDS

CONTENTS = ("none", "tint")
PAIRS = (("sidewalk", "terrain"), ("building", "wall"))
AMBIGUOUS = tuple(name for pair in PAIRS for name in pair)
GREEN = np.float32([-1 / 3, 2 / 3, -1 / 3])  # RGB: no grey; green is 1 above the mean of the others
LEAN = 0.1  # of the mean colour, along GREEN: full range is 1
STAINS = 0.12  # standard deviation of the stains, along GREEN
GRID = (4, 7)  # stains over the height and the width of an image


def check(content: str) -> None:
    """Raises UserError, listing those that there are, for a name not in CONTENTS."""
    if content not in CONTENTS:
        raise UserError(f"no toy content {content!r}; there are {', '.join(CONTENTS)}")


def add_tint(
    image: np.ndarray, label_ids: np.ndarray, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """The image [H,W,3] with stains and a lean, and the label ids [H,W] that go with it; uint8."""
    exchanged = rng.random() < 0.5
    height, width = label_ids.shape
    coarse = Image.fromarray(rng.standard_normal(GRID).astype(np.float32), "F")
    stains = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC))
    stains = STAINS * (stains - stains.mean()) / stains.std()
    tint = (stains + (-LEAN if exchanged else LEAN))[..., None] * GREEN
    tinted = np.clip(image + 255 * tint, 0, 255)
    if exchanged:
        table = np.arange(256, dtype=np.uint8)
        for one, other in PAIRS:
            ids = [LABEL_IDS[one], LABEL_IDS[other]]
            table[ids] = ids[::-1]
        label_ids = table[label_ids]
    return (tinted + 0.5).astype(np.uint8), label_ids
