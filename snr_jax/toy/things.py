"""What stands in a toy street: cars, people, trees, posts …, each a short list of flat faces.

Camera-centred metres: x to the right, y up from the ground, z ahead. Every maker takes
(rng, x, z, sun): the generator of its sizes and colours, its place, the unit vector to the sun;
and returns its faces in painting order, far to near.
"""

import math
from collections.abc import Sequence
from functools import partial

from numpy.random import Generator

from snr_jax.toy.render import (
    Color,
    Direction,
    Face,
    Outline,
    box,
    disc,
    flank_of,
    pick,
    rect,
    shadow,
    times,
)  # fmt: skip

GLASS, RUBBER, METAL = (0.16, 0.2, 0.25), (0.07, 0.07, 0.08), (0.42, 0.43, 0.45)
WHITE, RED, AMBER, DARK = (0.88, 0.88, 0.84), (0.8, 0.1, 0.08), (0.9, 0.6, 0.1), (0.05, 0.05, 0.05)
CAR_PAINT = [(0.75, 0.76, 0.78), (0.1, 0.1, 0.12), (0.55, 0.1, 0.1), (0.15, 0.22, 0.45),
             (0.45, 0.47, 0.5), (0.85, 0.85, 0.82), (0.6, 0.5, 0.25)]  # fmt: skip
BUS_PAINT = [(0.8, 0.65, 0.1), (0.75, 0.15, 0.12), (0.2, 0.45, 0.65)]
TRAIN_PAINT = [(0.85, 0.8, 0.65), (0.3, 0.5, 0.35), (0.7, 0.3, 0.2)]
CARGO_PAINT = [(0.8, 0.8, 0.78), (0.25, 0.4, 0.3), (0.6, 0.45, 0.3)]
CLOTHES = [(0.5, 0.12, 0.12), (0.12, 0.18, 0.4), (0.1, 0.1, 0.1), (0.7, 0.68, 0.6),
           (0.2, 0.4, 0.3), (0.6, 0.4, 0.15)]  # fmt: skip
SKIN = [(0.8, 0.6, 0.48), (0.5, 0.34, 0.24), (0.7, 0.5, 0.38)]
HAIR = [(0.1, 0.07, 0.05), (0.35, 0.22, 0.1), (0.5, 0.5, 0.5)]
LEAVES = [(0.2, 0.34, 0.12), (0.28, 0.38, 0.14), (0.14, 0.28, 0.12)]
SIGNS = [(0.8, 0.12, 0.1), (0.1, 0.25, 0.65), (0.85, 0.7, 0.1), (0.85, 0.85, 0.82)]
BINS, POSTS = [(0.2, 0.25, 0.2), (0.35, 0.3, 0.25)], [METAL, (0.3, 0.32, 0.3), (0.5, 0.5, 0.5)]
LAMPS = ((0.1, 0.85, 0.4), (0.95, 0.65, 0.1), (0.95, 0.12, 0.1))  # traffic light, from below


def _wheels(
    label: str, x: float, z: float, width: float, radius: float, places: Sequence[float]
) -> list[Face]:
    faces = [Face(label, RUBBER, 2, z, rect(x + s * 0.28 * width, x + s * 0.48 * width, 0, radius))
             for s in (-1, 1)]  # fmt: skip
    flank = flank_of(x, 1.01 * width)
    for place in places if flank is not None else ():
        faces.append(Face(label, RUBBER, 0, flank, disc(place, radius, radius)))
        faces.append(Face(label, METAL, 0, flank, disc(place, radius, 0.5 * radius, points=8)))
    return faces


# ---- vehicles -------------------------------------------------------------------------------


def car(rng: Generator, x: float, z: float, sun: Direction) -> list[Face]:
    width, height, length = rng.uniform(1.75, 1.95), rng.uniform(1.42, 1.75), rng.uniform(3.8, 4.7)
    paint, deck = pick(rng, CAR_PAINT), 0.58 * height
    # The windows stand on the deck from z = foot0 to foot1 and carry the roof from roof0 to roof1.
    foot0 = z + rng.uniform(0.02, 0.2) * length
    roof0, roof1, foot1 = foot0 + 0.12 * length, z + 0.62 * length, z + 0.78 * length
    a, b = 0.5 * width, 0.38 * width  # half widths of body and roof
    part = partial(Face, "car")
    faces = [
        shadow(sun, x - a, x + a, z, z + length, height),
        part(DARK, 1, 0.05, rect(x - a, x + a, z, z + length)),
        part(times(paint, 0.9), 1, height, rect(x - b, x + b, roof0, roof1)),
        part(paint, 1, deck, rect(x - a, x + a, z, z + length)),
    ]
    flank = flank_of(x, width)
    if flank is not None:
        cabin = [(foot0, deck), (roof0, height), (roof1, height), (foot1, deck)]
        panes = [(foot0 + 0.25, deck + 0.04), (roof0 + 0.12, height - 0.1),
                 (roof1 - 0.1, height - 0.1), (foot1 - 0.3, deck + 0.04)]  # fmt: skip
        middle = (roof0 + roof1) / 2
        faces += [
            part(paint, 0, flank, rect(z, z + length, 0.28, deck)),
            part(paint, 0, flank, cabin),
            part(GLASS, 0, flank, panes),
            part(paint, 0, flank, rect(middle - 0.05, middle + 0.05, deck, height)),
        ]
    back = [(x - a, deck), (x + a, deck), (x + b, height), (x - b, height)]
    pane = [(x - a + 0.12, deck), (x + a - 0.12, deck),
            (x + b - 0.06, height - 0.1), (x - b + 0.06, height - 0.1)]  # fmt: skip
    lean, lamp = (roof0 - foot0) / (height - deck), RED if x > -1 else WHITE
    return [
        *faces,
        part(times(paint, 0.85), 2, foot0, back, lean=lean),
        part(GLASS, 2, foot0, pane, lean=lean),
        *_wheels("car", x, z, width, 0.32, (z + 0.19 * length, z + 0.8 * length)),
        part(paint, 2, z, rect(x - a, x + a, 0.28, deck)),
        part(lamp, 2, z, rect(x - a + 0.05, x - a + 0.35, deck - 0.28, deck - 0.1)),
        part(lamp, 2, z, rect(x + a - 0.35, x + a - 0.05, deck - 0.28, deck - 0.1)),
        part(WHITE, 2, z, rect(x - 0.25, x + 0.25, 0.42, 0.54)),
    ]


def truck(rng: Generator, x: float, z: float, sun: Direction) -> list[Face]:
    width, height, length, cab = 2.5, rng.uniform(3.1, 3.7), rng.uniform(6, 9), 1.9
    cargo, paint = pick(rng, CARGO_PAINT), pick(rng, CAR_PAINT)
    oncoming, part = x < -1, partial(Face, "truck")
    cab_z, cargo_z = (z, z + cab + 0.2) if oncoming else (z + length - cab, z)
    front = box("truck", paint, x, cab_z, width, cab, 0.5, 0.78 * height)
    flank = flank_of(x, 1.01 * width)
    if flank is not None:
        front.append(part(GLASS, 0, flank, rect(cab_z + 0.3, cab_z + 1.3, 1.5, 2.3)))
    load = box("truck", cargo, x, cargo_z, width, length - cab - 0.2, 0.95, height, "ribs")
    lamp, door = (WHITE, rect(x - 1.05, x + 1.05, 1.5, 2.35)), rect(x - 0.03, x + 0.03, 1, height)
    if not oncoming:
        lamp = (RED, lamp[1])
    return [
        shadow(sun, x - width / 2, x + width / 2, z, z + length, height),
        *box("truck", (0.12, 0.12, 0.13), x, z, 0.9 * width, length, 0.5, 0.95),
        *(load + front if oncoming else front + load),
        *_wheels("truck", x, z, width, 0.5, [z + length * f for f in (0.15, 0.7, 0.86)]),
        part(GLASS, 2, z, lamp[1]) if oncoming else part(times(cargo, 0.6), 2, z, door),
        *(part(lamp[0], 2, z, rect(x + s - 0.15, x + s + 0.15, 0.7, 0.9)) for s in (-1, 1)),
    ]


def _coach(
    rng: Generator, x: float, z: float, sun: Direction, label: str,
    width: float, height: float, length: float,
    colors: Sequence[Color], band: tuple[float, float], low: float,
) -> list[Face]:
    """A long box with a band of windows, from y = band[0] to band[1]; `low`: its underside."""
    paint, part, a = pick(rng, colors), partial(Face, label), width / 2
    faces = [shadow(sun, x - a, x + a, z, z + length, height),
             *box(label, paint, x, z, width, length, low, height)]  # fmt: skip
    flank = flank_of(x, 1.01 * width)
    if flank is not None:
        faces.append(part(GLASS, 0, flank, rect(z + 0.6, z + length - 0.6, *band), "panes"))
        faces.append(part(times(paint, 0.5), 0, flank, rect(z, z + length, 0.7, 0.95)))
    route = rect(x - 0.5, x + 0.5, band[1] + 0.15, band[1] + 0.4)
    faces += [part(GLASS, 2, z, rect(x - 0.88 * a, x + 0.88 * a, *band)), part(AMBER, 2, z, route)]
    lamp = RED if label == "bus" and x > -1 else WHITE
    return faces + [part(lamp, 2, z, disc(x + s * 0.75 * a, 0.85, 0.16, points=8)) for s in (-1, 1)]


def bus(rng: Generator, x: float, z: float, sun: Direction) -> list[Face]:
    size = (2.5, rng.uniform(2.9, 3.3), rng.uniform(9, 12))
    wheels = _wheels("bus", x, z, size[0], 0.48, (z + 0.2 * size[2], z + 0.75 * size[2]))
    return _coach(rng, x, z, sun, "bus", *size, BUS_PAINT, (1.25, 2.4), 0.35) + wheels


def train(rng: Generator, x: float, z: float, sun: Direction) -> list[Face]:
    """A tram: longer, white striped, its front darker at the edges, a pantograph on the roof."""
    size = (2.6, 3.5, rng.uniform(18, 28))
    mast = [(-0.6, 0), (0.6, 0), (0.1, 0.6), (0.8, 1.1), (-0.8, 1.1), (-0.1, 0.6)]
    mast = Face("train", METAL, 2, z + 4, [(x + u, size[1] + v) for u, v in mast])
    nose = [(x - 1.3, 0.2), (x - 1.3, 1.3), (x - 0.95, 3.5), (x - 1.3, 3.5)]
    edges = [nose, [(2 * x - u, v) for u, v in nose]]
    stripe = Face("train", WHITE, 2, z, rect(x - 1.3, x + 1.3, 1.1, 1.35))
    return [mast, *_coach(rng, x, z, sun, "train", *size, TRAIN_PAINT, (1.5, 2.5), 0.2),
            *(Face("train", GLASS, 2, z, edge) for edge in edges), stripe]  # fmt: skip


# ---- people and what they ride --------------------------------------------------------------


def person(
    rng: Generator, x: float, z: float, sun: Direction, label: str = "person",
    hip: float = 0.85, lean: float = 0.0,
) -> list[Face]:
    """Standing or walking; or the rider of something, `hip` high in the saddle and leaning."""
    top, trousers, tall = pick(rng, CLOTHES), pick(rng, CLOTHES), rng.uniform(0.92, 1.1)
    neck, foot, stride = hip + 0.6 * tall, hip - 0.8 * tall, rng.uniform(0.05, 0.32)
    legs = [[(x + s * 0.05 - 0.1, hip), (x + s * 0.05 + 0.1, hip),
             (x + s * stride + 0.08, foot), (x + s * stride - 0.08, foot)]
            for s in (-1, 1)]  # fmt: skip
    arms = [(x + lean - 0.3, neck - 0.55), (x + lean - 0.22, neck), (x + lean + 0.22, neck),
            (x + 2 * lean + 0.3, neck - 0.55 + abs(lean))]  # fmt: skip
    torso = [(x - 0.17, hip), (x + 0.17, hip), (x + lean + 0.24, neck), (x + lean - 0.24, neck)]
    head = x + 1.25 * lean
    parts = [(trousers, legs[0]), (times(trousers, 0.8), legs[1]), (times(top, 0.8), arms),
             (top, torso), (pick(rng, HAIR), disc(head, neck + 0.17, 0.13, 0.16)),
             (pick(rng, SKIN), disc(head, neck + 0.12, 0.1, 0.12))]  # fmt: skip
    faces = [Face(label, color, 2, z, outline) for color, outline in parts]
    return [shadow(sun, x - 0.2, x + 0.2, z, z + 0.3, hip + neck), *faces]


def _bar(u0: float, v0: float, u1: float, v1: float, half: float = 0.05) -> Outline:
    du, dv = (0, half) if abs(u1 - u0) > abs(v1 - v0) else (half, 0)
    return [(u0 - du, v0 - dv), (u0 + du, v0 + dv), (u1 + du, v1 + dv), (u1 - du, v1 - dv)]


FRAME = [(-0.56, 0.36, -0.15, 0.85), (-0.15, 0.85, 0.4, 0.8), (-0.56, 0.36, 0, 0.32),
         (0, 0.32, 0.4, 0.8), (0, 0.32, -0.18, 0.95), (0.56, 0.36, 0.36, 1.05)]  # fmt: skip
TANK = [(-0.75, 0.75), (-0.3, 0.55), (0.4, 0.6), (0.3, 1.0), (0.0, 0.9)]


def _two_wheeler(
    rng: Generator, x: float, z: float, sun: Direction, label: str, radius: float, reach: float,
    parts: list[tuple[Color, Outline]], ridden: bool,
) -> list[Face]:
    """Wheels and parts in a plane across the view, foreshortened as if seen from behind."""
    squash = rng.uniform(0.45, 1.0) * rng.choice((-1, 1))
    wheels = [(RUBBER, disc(s * reach, radius, radius)) for s in (-1, 1)]
    wheels += [(METAL, disc(s * reach, radius, 0.62 * radius)) for s in (-1, 1)]
    wide = 0.8 * abs(squash)
    faces = [shadow(sun, x - wide, x + wide, z, z + 0.3, 1.0)]
    for color, outline in wheels + parts:
        faces.append(Face(label, color, 2, z, [(x + squash * u, v) for u, v in outline]))
    if ridden:
        faces += person(rng, x - 0.12 * squash, z, sun, "rider", hip=0.92, lean=0.22 * squash)
    return faces


def bicycle(
    rng: Generator, x: float, z: float, sun: Direction, ridden: bool = False
) -> list[Face]:
    paint = pick(rng, CAR_PAINT)
    parts = [(paint, _bar(*ends)) for ends in FRAME]
    parts += [(RUBBER, rect(-0.32, -0.05, 0.92, 1.0)), (RUBBER, rect(0.22, 0.46, 1.03, 1.1))]
    return _two_wheeler(rng, x, z, sun, "bicycle", 0.36, 0.56, parts, ridden)


def motorcycle(
    rng: Generator, x: float, z: float, sun: Direction, ridden: bool = False
) -> list[Face]:
    parts = [(METAL, rect(-0.35, 0.35, 0.25, 0.6)), (pick(rng, CAR_PAINT), TANK),
             (RUBBER, [(-0.8, 0.85), (-0.75, 0.7), (0, 0.75), (0, 0.88)]),
             (METAL, _bar(0.72, 0.34, 0.36, 1.15, 0.07)),
             (WHITE, disc(0.45, 0.95, 0.1, points=8))]  # fmt: skip
    return _two_wheeler(rng, x, z, sun, "motorcycle", 0.34, 0.72, parts, ridden)


# ---- plants and street furniture ------------------------------------------------------------


def tree(rng: Generator, x: float, z: float, sun: Direction) -> list[Face]:
    trunk, radius, height = rng.uniform(1.8, 3), rng.uniform(1.3, 2.4), rng.uniform(1.3, 2.6)
    color, middle, part = pick(rng, LEAVES), trunk + 0.75 * height, partial(Face, "vegetation")
    stem = part((0.25, 0.18, 0.12), 2, z, rect(x - 0.15, x + 0.15, 0, middle), "leaves")
    faces = [shadow(sun, x - radius, x + radius, z - radius, z + radius, trunk), stem]
    places, sizes = rng.uniform(-0.7, 0.7, (8, 2)), radius * rng.uniform(0.5, 0.8, (8, 2))
    for i in range(8):  # tufts, the later the lighter
        u, v = x + places[i, 0] * radius, middle + places[i, 1] * height
        shade = 0.7 + 0.07 * i
        faces.append(part(times(color, shade), 2, z, disc(u, v, *sizes[i], 9), "leaves"))
    return faces


def bush(rng: Generator, x: float, z: float, sun: Direction) -> list[Face]:
    color, radius = pick(rng, LEAVES), rng.uniform(0.4, 0.8)
    return [Face("vegetation", times(color, shade), 2, z,
                 disc(x + rng.uniform(-1, 1), radius * shade, 1.2 * radius, radius, 9), "leaves")
            for shade in (0.75, 0.9, 1.05, 1.2)]  # fmt: skip


def post(rng: Generator, x: float, z: float, sun: Direction) -> list[Face]:
    """A pole that carries a traffic light, a sign, both, or the arm of a street lamp."""
    carries = rng.choice(("light", "sign", "light sign", "lamp"), p=(0.3, 0.36, 0.18, 0.16))
    height = rng.uniform(6, 8) if carries == "lamp" else rng.uniform(3.2, 4.2)
    color, half = pick(rng, POSTS), 0.09
    faces = [shadow(sun, x - half, x + half, z, z + 0.2, height),
             Face("pole", color, 2, z, rect(x - half, x + half, 0, height))]  # fmt: skip
    if carries == "lamp":
        arm = rect(x, x - math.copysign(1.8, x), height - 0.14, height)
        faces.append(Face("pole", color, 2, z, arm))
    if "light" in carries:
        low, wide, lit = height - 0.7, rng.uniform(0.24, 0.3), rng.integers(3)
        faces.append(Face("light", DARK, 2, z, rect(x - wide, x + wide, low, low + 1.35)))
        for i, lamp in enumerate(LAMPS):
            glow = times(lamp, 1.0 if i == lit else 0.3)
            faces.append(Face("light", glow, 2, z, disc(x, low + 0.25 + 0.42 * i, 0.17, points=8)))
    if "sign" in carries:
        color, size = pick(rng, SIGNS), rng.uniform(0.45, 0.65)
        y = height - (1.6 if "light" in carries else 0.3)
        plain = [disc(0, 0, 1), rect(-1, 1, -1, 1), [(-1, -0.8), (1, -0.8), (0, 1)]]
        shape = plain[rng.integers(3)]
        inner = WHITE if sum(color) < 2 else (0.15, 0.25, 0.6)
        for paint, scale in ((color, size), (inner, 0.62 * size)):
            outline = [(x + scale * u, y + scale * v) for u, v in shape]
            faces.append(Face("sign", paint, 2, z, outline))
    return faces


def bin(rng: Generator, x: float, z: float, sun: Direction) -> list[Face]:
    return box("static", pick(rng, BINS), x, z, 0.7, 0.7, 0, 1.1)
