"""How much a resize changes the shape of an image. Sizes are height, width."""

SQUEEZE = 1.6  # from 4:3 to 2:1, as a photo to the size of Cityscapes, it is 1.5


def is_squeezed(have: tuple[int, int], seen: tuple[int, int]) -> bool:
    """Whether resizing from one size to the other squeezes or stretches much."""
    ratio = have[0] * seen[1] / (have[1] * seen[0])
    return max(ratio, 1 / ratio) > SQUEEZE
