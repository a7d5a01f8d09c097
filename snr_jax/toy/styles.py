"""How a street looks: the styles, a literal table, and what a camera of each makes of a scene."""

from typing import NamedTuple

import numpy as np
from PIL import Image, ImageFilter

from snr_jax.core.errors import UserError
from snr_jax.toy.content import add_tint, check
from snr_jax.toy.render import LABEL_IDS, Scene
from snr_jax.toy.scenes import draw_scene


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


def get_style(name: str) -> Style:
    """The style of that name; UserError, listing them, for another."""
    if name not in STYLES:
        raise UserError(f"no toy style {name!r}; there are {', '.join(STYLES)}")
    return STYLES[name]


def apply_style(scene: Scene, style: str, rng: np.random.Generator) -> np.ndarray:
    """The scene as a camera of that style sees it, uint8 [H,W,3] RGB; jitter and noise from rng.

    Raises UserError for a style that STYLES does not name.
    """
    look = get_style(style)
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


def draw_pair(
    seed: int, index: int, height: int, width: int, style: str, content: str = "none"
) -> tuple[np.ndarray, np.ndarray]:
    """Image uint8 [H,W,3] RGB and label ids uint8 [H,W] of one street in one style.

    content: what the image as a whole says about its classes, of content.CONTENTS.
    """
    check(content)
    scene = draw_scene(seed, index, height, width)
    image = apply_style(scene, style, np.random.default_rng((seed, index, 1)))
    if content == "none":
        return image, scene.label_ids
    return add_tint(image, scene.label_ids, np.random.default_rng((seed, index, 3)))
