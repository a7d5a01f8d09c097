"""A small deferred renderer for streets made of flat, axis-aligned faces.

Faces are painted far to near, but only their numbers are; label, depth, colour, texture and
light are then looked up or computed once per pixel from the face's row.
Camera-centred metres: x to the right, y up from the ground, z ahead.
"""

import math
from collections.abc import Sequence
from functools import cache
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from snr_jax.core import labels

LABEL_IDS = {c.name: c.label_id for c in labels.CLASSES} | {"ego vehicle": 1, "static": 4}
Color = tuple[float, float, float]  # RGB in [0,1]
Outline = list[tuple[float, float]]
Direction = tuple[float, float, float]  # unit vector

NEAR, SKY = 2.0, 400.0  # metres: where the ground begins, just behind the image; where sky stands


class Face(NamedTuple):
    label: str  # class name, or "shadow": darkens the ground, changes no label
    color: Color
    axis: int  # the plane stands across x (0), y (1) or z (2) …
    at: float  # … at this coordinate, metres
    outline: Outline  # in the plane: (z, y), (x, z) or (x, y)
    texture: str = "plain"  # key of TEXTURES
    lean: float = 0.0  # axis 2: metres away per metre up, from the first point (windscreens)


class Scene(NamedTuple):
    albedo: np.ndarray  # float32 [H,W,3] RGB in [0,1]: colour and texture, no light
    light: np.ndarray  # float32 [H,W] in [0,1]: share of direct sun that arrives
    label_ids: np.ndarray  # uint8 [H,W]
    depth: np.ndarray  # float32 [H,W], metres


class Camera(NamedTuple):
    focal: float  # pixels
    center: tuple[float, float]  # vanishing point (column, row), pixels
    height: float  # metres above the ground


# ---- shapes and colours ---------------------------------------------------------------------


def rect(u0: float, u1: float, v0: float, v1: float) -> Outline:
    return [(u0, v0), (u1, v0), (u1, v1), (u0, v1)]


@cache
def _circle(points: int) -> Outline:
    turns = [2 * math.pi * i / points for i in range(points)]
    return [(math.cos(a), math.sin(a)) for a in turns]


def disc(
    u: float, v: float, radius_u: float, radius_v: float | None = None, points: int = 10
) -> Outline:
    radius_v = radius_u if radius_v is None else radius_v
    return [(u + radius_u * a, v + radius_v * b) for a, b in _circle(points)]


def pick(rng: np.random.Generator, colors: Sequence[Color], spread: float = 0.05) -> Color:
    """One of the colours, the whole and each channel jittered."""
    whole, *own = rng.normal(0, spread, 4)
    color = colors[rng.integers(len(colors))]
    return tuple(min(1.0, max(0.02, c * (1 + 2 * whole + o))) for c, o in zip(color, own))


def times(color: Color, factor: float) -> Color:
    return tuple(min(1.0, c * factor) for c in color)


def shadow(
    sun: Direction, x0: float, x1: float, z0: float, z1: float, height: float
) -> Face:
    """What a box of that height darkens on the ground."""
    dx, dz = -sun[0] / sun[1] * height, -sun[2] / sun[1] * height
    hull = [(x0, z0), (x1, z0), (x1 + dx, z1 + dz), (x0 + dx, z1 + dz)]
    return Face("shadow", (0, 0, 0), 1, 0.0, [(x, max(z, NEAR)) for x, z in hull])


def flank_of(x: float, width: float) -> float | None:
    """Where the side stands that the camera sees; None straight ahead, where it sees neither."""
    return x - math.copysign(width / 2, x) if abs(x) > width / 2 else None


def box(
    label: str, color: Color, x: float, z: float, width: float, length: float, y0: float, y1: float,
    texture: str = "plain",
) -> list[Face]:
    """The faces of a box that the camera can see: flank, top, front."""
    faces, flank = [], flank_of(x, width)
    x0, x1 = x - width / 2, x + width / 2
    if flank is not None:
        faces.append(Face(label, color, 0, flank, rect(z, z + length, y0, y1), texture))
    if y1 < 2.0:
        faces.append(Face(label, color, 1, y1, rect(x0, x1, z, z + length), texture))
    return [*faces, Face(label, color, 2, z, rect(x0, x1, y0, y1), texture)]


# ---- textures: factor on the colour from in-plane metres s, t, depth z and a number per face -----


def _tile() -> np.ndarray:
    """Periodic fractal noise, float32 [256,256], standard deviation 0.5."""
    size = 256
    white = np.fft.rfft2(np.random.default_rng(19).standard_normal((size, size)))
    rows, columns = np.fft.fftfreq(size)[:, None], np.fft.rfftfreq(size)[None, :]
    frequency = np.maximum(np.hypot(rows, columns), 1 / size)
    pink = np.fft.irfft2(white / frequency**0.8)
    pink -= pink.mean()
    return (0.5 * pink / pink.std()).astype(np.float32)


TILE = _tile()


def _noise(s: np.ndarray, t: np.ndarray, scale: float) -> np.ndarray:
    rows, columns = (s * scale).astype(np.int32) & 255, (t * scale).astype(np.int32) & 255
    return TILE[rows, columns]


def _windows(s: np.ndarray, t: np.ndarray, z: np.ndarray, number: np.ndarray) -> np.ndarray:
    width, storey = 1.7 + 1.5 * number, 2.7 + 0.7 * (7 * number % 1)
    u, v = s / width, t / storey
    inside = (np.abs(u % 1 - 0.5) < 0.29) & (np.abs(v % 1 - 0.55) < 0.27)
    shine = 0.5 + 0.35 * _noise(np.floor(u), np.floor(v), 1.0)
    ledge = 1 - 0.25 * (v % 1 < 0.06)
    return np.where(inside, shine, ledge * (1 + 0.07 * _noise(s, t, 4.0)))


def _bricks(s: np.ndarray, t: np.ndarray, z: np.ndarray, number: np.ndarray) -> np.ndarray:
    fade = np.minimum(1, 14 / z)
    course = np.floor(t / 0.3)
    joint = (t % 0.3 < 0.05) | ((s + 0.3 * (course % 2)) % 0.6 < 0.06)
    return 1 - 0.3 * joint * fade + 0.16 * _noise(s / 0.6, course, 1.0)


def _slabs(s: np.ndarray, t: np.ndarray, z: np.ndarray, number: np.ndarray) -> np.ndarray:
    joint = (s % 0.9 < 0.07) | (t % 0.9 < 0.09)
    return 1 - 0.22 * joint * np.minimum(1, 9 / z) + 0.09 * _noise(s, t, 3.0)


def _bars(s: np.ndarray, t: np.ndarray, z: np.ndarray, number: np.ndarray) -> np.ndarray:
    gap = (s % 0.4 > 0.16) & (t % 0.95 > 0.12)
    return 1 - 0.62 * gap


TEXTURES = {
    "plain": lambda s, t, z, number: 1 + 0.04 * _noise(s, t, 5.0),
    "asphalt": lambda s, t, z, number: 1 + 0.1 * _noise(s, t, 1.5) + 0.05 * _noise(t, s, 9.0),
    "slabs": _slabs,
    "windows": _windows,
    "bricks": _bricks,
    "bars": _bars,
    "ribs": lambda s, t, z, number: 1 - 0.15 * (s % 0.8 < 0.12) + 0.04 * _noise(s, t, 3.0),
    "panes": lambda s, t, z, number: np.where(s % 1.5 < 0.16, 2.4, 1 + 0.2 * _noise(s, t, 1.0)),
    "leaves": lambda s, t, z, number: 1 + 0.4 * _noise(s, t, 4.0) + 0.2 * _noise(t, s, 11.0),
    "grass": lambda s, t, z, number: 1 + 0.2 * _noise(s, t, 2.0) + 0.2 * _noise(t, s, 8.0),
    "clouds": lambda s, t, z, number: 1 + 0.2 * _noise(s, 2.5 * t, 0.3),
}

# ---- the renderer ---------------------------------------------------------------------------


def _project(face: Face, camera: Camera) -> list[tuple[float, float]]:
    (column, row), focal, eye, at = camera.center, camera.focal, camera.height, face.at
    if face.lean:
        foot = face.outline[0][1]
        spots = [(u, v, at + face.lean * (v - foot)) for u, v in face.outline]
        return [(column + focal * x / z, row + focal * (eye - y) / z) for x, y, z in spots]
    if face.axis == 0:
        return [(column + focal * at / z, row + focal * (eye - y) / z) for z, y in face.outline]
    if face.axis == 1:
        return [(column + focal * x / z, row + focal * (eye - at) / z) for x, z in face.outline]
    scale = focal / at
    return [(column + scale * x, row + scale * (eye - y)) for x, y in face.outline]


def render(
    faces: list[Face], sun: Direction, camera: Camera, height: int, width: int
) -> Scene:
    """The faces, painted in their order, as the camera sees them; `sun`: unit vector towards it."""
    numbers, shadows = Image.new("I", (width, height)), Image.new("L", (width, height))
    paint, shade = ImageDraw.Draw(numbers), ImageDraw.Draw(shadows)
    for number, face in enumerate(faces):
        if face.label == "shadow":
            shade.polygon(_project(face, camera), fill=255)
        else:
            paint.polygon(_project(face, camera), fill=number)
    number = np.asarray(numbers, np.intp)  # [H, W]
    names = list(TEXTURES)
    label = np.array([LABEL_IDS.get(f.label, 0) for f in faces], np.uint8)
    color = np.array([f.color for f in faces], np.float32)
    texture = np.array([names.index(f.texture) for f in faces])
    axis = np.array([f.axis for f in faces])
    offset = np.array([f.at - (camera.height if f.axis == 1 else 0) for f in faces], np.float32)
    # Sun on each plane; the normal points to the camera's side, and the sky shines by itself.
    facing = np.where(axis == 0, -np.sign(offset) * sun[0], np.where(axis == 1, sun[1], -sun[2]))
    facing = np.where(label == LABEL_IDS["sky"], 1.0, np.maximum(facing, 0.0)).astype(np.float32)

    # Ray of a pixel: depth z times (ray_x, ray_y, 1); it meets plane n·p = offset at this depth.
    ray_x = ((np.arange(width, dtype=np.float32) + 0.5 - camera.center[0]) / camera.focal)[None, :]
    ray_y = ((camera.center[1] - np.arange(height, dtype=np.float32) - 0.5) / camera.focal)[:, None]
    across = axis[number]
    along = np.where(across == 0, ray_x, np.where(across == 1, ray_y, np.float32(1)))
    along = np.where(np.abs(along) < 1e-4, np.float32(1e-4), along)
    depth = np.clip(offset[number] / along, 1.0, SKY).astype(np.float32)
    x, y = depth * ray_x, depth * ray_y + camera.height
    s = np.where(across == 0, depth, x)
    t = np.where(across == 1, depth, y)

    factor = np.ones((height, width), np.float32)
    kind = texture[number]
    for index in range(len(names)):
        here = kind == index
        own = (number[here] * np.float32(0.618)) % 1
        factor[here] = TEXTURES[names[index]](s[here], t[here], depth[here], own)
    albedo = np.clip(color[number] * factor[..., None], 0, 1)
    sunny = 1 - np.asarray(shadows.filter(ImageFilter.GaussianBlur(width / 400)), np.float32) / 255
    light = np.where(across == 1, sunny, 1) * facing[number]
    return Scene(albedo, light.astype(np.float32), label[number], depth)
