"""The lay-out of procedural streets: what stands where, and in which order it is painted.

Style is no part of a scene: see styles.py.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

import numpy as np
from numpy.random import Generator

from snr_jax.toy import things
from snr_jax.toy.render import (
    NEAR,
    SKY,
    Camera,
    Color,
    Direction,
    Face,
    Outline,
    Scene,
    box,
    pick,
    rect,
    render,
    shadow,
    times,
)  # fmt: skip

T = TypeVar("T")
Make = Callable[..., list[Face]]  # (rng, x, z, sun) → faces, as in things.py

FAR = 150.0  # metres: where the ground ends and the backdrop stands
FACADES = [(0.55, 0.36, 0.28), (0.66, 0.6, 0.5), (0.5, 0.5, 0.52), (0.72, 0.66, 0.45),
           (0.45, 0.32, 0.28), (0.68, 0.68, 0.66)]  # fmt: skip
ASPHALT, PAVING = [(0.3, 0.3, 0.31), (0.36, 0.35, 0.34)], [(0.5, 0.47, 0.45), (0.55, 0.54, 0.53)]
GRASS, BLUE = [(0.3, 0.4, 0.16), (0.42, 0.42, 0.2)], [(0.45, 0.62, 0.85), (0.6, 0.72, 0.85)]
MASONRY, RAILING = [(0.5, 0.33, 0.27), (0.55, 0.54, 0.5)], [(0.4, 0.42, 0.4), (0.5, 0.38, 0.26)]
# How often: plots beside the street, vehicles in it.
PLOTS = {"building": 0.5, "wall": 0.2, "fence": 0.2, "trees": 0.1}
VEHICLES = {things.car: 0.4, things.truck: 0.2, things.bus: 0.2, things.train: 0.2}


def _draw_from(rng: Generator, table: Mapping[T, float]) -> T:
    return list(table)[rng.choice(len(table), p=list(table.values()))]


def _ground(
    rng: Generator, left: float, right: float, paths: Sequence[float], lane: float
) -> list[Face]:
    """Terrain, sidewalks, road, markings. Road from x = left to right; `paths` widths beside it."""

    def strip(
        label: str, color: Color, x0: float, x1: float, texture: str = "plain",
        z: tuple[float, float] = (NEAR, FAR),
    ) -> Face:
        return Face(label, color, 1, 0.0, rect(x0, x1, *z), texture)

    paving, curb, paint = pick(rng, PAVING), (0.6, 0.6, 0.58), times((0.85, 0.85, 0.8), 0.9)
    faces = [
        strip("terrain", pick(rng, GRASS), -60, 60, "grass"),
        strip("sidewalk", paving, left - paths[0], right + paths[1], "slabs"),
    ]
    for edge, side, width in ((left, -1, paths[0]), (right, 1, paths[1])):
        if rng.random() < 0.45:  # a verge between sidewalk and road
            grass = sorted((edge, edge + side * rng.uniform(0.25, 0.45) * width))
            faces.append(strip("terrain", pick(rng, GRASS), *grass, "grass"))
    faces.append(strip("sidewalk", curb, left - 0.2, right + 0.2))
    faces.append(strip("road", pick(rng, ASPHALT, 0.025), left, right, "asphalt"))
    start = rng.uniform(NEAR, 7)
    for x in (lane, lane - 3.5, lane + 3.5):
        if left + 1.5 < x < right - 1.5:
            faces += [strip("road", paint, x - 0.07, x + 0.07, z=(z, z + 3))
                      for z in np.arange(start, 80, 7)]  # fmt: skip
    if rng.random() < 0.25:  # zebra crossing
        z = rng.uniform(8, 22)
        faces += [strip("road", paint, x, x + 0.5, z=(z, z + 3))
                  for x in np.arange(left + 0.4, right - 0.6, 1.0)]  # fmt: skip
    return faces


def _side(rng: Generator, x: float, side: int, sun: Direction) -> list[Face]:
    """Buildings, walls, fences and trees along x, to one side (-1, 1), far to near."""
    plots, z = [], rng.uniform(-6, 4)
    while z < FAR - 20:
        length = rng.uniform(9, 24)
        plots.append((_draw_from(rng, PLOTS), max(z, NEAR), z + length))
        z += length + (rng.uniform(0, 5) if rng.random() < 0.4 else 0)
    faces, back = [], x + side * rng.uniform(0.0, 2.5)
    for kind, z0, z1 in reversed(plots):
        if kind == "building":
            color, height, deep = pick(rng, FACADES), rng.uniform(6, 20), rng.uniform(8, 14)
            middle, length = back + side * deep / 2, z1 - z0
            faces += [
                shadow(sun, *sorted((back, back + side * deep)), z0, z1, height),
                *box("building", color, middle, z0, deep, length, 0, height, "windows"),
                Face("building", times(color, 0.6), 0, back, rect(z0, z1, 0, 0.6)),
            ]
            continue
        for _ in range(rng.integers(2, 4) if z1 > 12 else 0):
            place = rng.uniform(max(z0, 9), max(z1, 10))
            faces += things.tree(rng, x + side * rng.uniform(1.5, 7), place, sun)
        if kind == "trees":
            continue
        low, high, colors, texture = (
            (1.5, 3.2, MASONRY, "bricks") if kind == "wall" else (1.3, 2.1, RAILING, "bars")
        )
        height, color = rng.uniform(low, high), pick(rng, colors)
        faces.append(shadow(sun, *sorted((x, x + 0.3 * side)), z0, z1, height))
        faces += box(kind, color, x + side * 0.15, z0, 0.3, z1 - z0, 0, height, texture)
    return faces


def _things(
    rng: Generator, left: float, right: float, paths: Sequence[float], lane: float, sun: Direction
) -> list[tuple[float, list[Face]]]:
    """Everything that stands or drives: (distance, faces), unsorted."""
    found = []

    def put(make: Make, x: float, z: float, **how: bool) -> None:
        found.append((z, make(rng, x, z, sun, **how)))

    def spots(mean: float, z0: float, z1: float) -> np.ndarray:
        """Distances of about `mean` things, denser near the camera."""
        return z0 * (z1 / z0) ** rng.random(rng.poisson(mean))

    def cycle() -> Make:
        return things.bicycle if rng.random() < 0.6 else things.motorcycle

    if rng.random() < 0.6:
        ahead = lane + 1.75 + rng.uniform(-0.3, 0.3)
        put(_draw_from(rng, VEHICLES), ahead, rng.uniform(9, 40))
    for z in np.arange(rng.uniform(7, 16), 90, 31)[: rng.integers(1, 4)]:
        put(_draw_from(rng, VEHICLES), lane - 1.75 + rng.uniform(-0.3, 0.3), z)
    for edge, side, width in ((left, -1, paths[0]), (right, 1, paths[1])):
        if rng.random() < 0.5:  # parked along the curb
            for z in np.arange(rng.uniform(4, 12), 45, 6.2):
                if rng.random() < 0.5:
                    put(things.car, edge - side * 1.05, z)
        for z in spots(2.6, 6, 22):
            put(things.person, edge + side * rng.uniform(0.3, 1) * width, z)
        for z in spots(1.4, 5.5, 15):
            put(cycle(), edge + side * rng.uniform(0.1, 0.7) * width, z)
        for z in spots(0.7, 8, 50):
            put(things.tree, edge + side * rng.uniform(0.5, 1.0) * width, z)
        for z in spots(0.9, 6, 40):
            put(things.bush, edge + side * (width + 0.2), z)
        for z in spots(2.4, 7, 40):
            put(things.post, edge + side * rng.uniform(0.35, 0.9), z)
        if rng.random() < 0.25:
            put(things.bin, edge + side * 0.8 * width, rng.uniform(6, 20))
    for z in spots(1.6, 6, 16):
        put(cycle(), rng.uniform(left + 0.8, right - 0.6), z, ridden=True)
    if rng.random() < 0.3:  # somebody crosses
        put(things.person, rng.uniform(left, right), rng.uniform(8, 24))
    return found


def _skyline(rng: Generator, low: float, high: float, step: float, flat: float) -> Outline:
    """Outline of what stands far away: steps of roofs (flat), or peaks of trees."""
    outline = [(-160.0, -4.0)]
    for x in np.arange(-160.0, 161.0, step):
        y = rng.uniform(low, high)
        outline += [(x, y), (x + 0.9 * step * flat, y)]
    return [*outline, (200.0, -4.0)]


def draw_scene(seed: int, index: int, height: int, width: int) -> Scene:
    """The street number `index` of `seed`, [H,W] of any size; a function of its arguments alone."""
    rng = np.random.default_rng((seed, index))
    center = (width * rng.uniform(0.4, 0.6), height * rng.uniform(0.42, 0.52))
    camera = Camera(width * rng.uniform(0.62, 0.78), center, rng.uniform(1.4, 1.9))
    azimuth, elevation = rng.uniform(0, 2 * math.pi), rng.uniform(0.45, 1.1)
    level = math.cos(elevation)
    sun = (level * math.sin(azimuth), math.sin(elevation), level * math.cos(azimuth))

    lane = -1.75 + rng.uniform(-0.5, 0.5)  # x of the line between the directions
    left, right = lane - rng.choice((3.6, 5.6, 7)), lane + rng.choice((3.8, 5.6, 7))
    paths = rng.uniform(2.2, 4.5, 2)  # metres of sidewalk
    faces = [
        Face("sky", pick(rng, BLUE), 2, SKY, rect(-900, 900, -40, 900), "clouds"),
        *_ground(rng, left, right, paths, lane),
        Face("building", pick(rng, FACADES), 2, FAR, _skyline(rng, 4, 24, 16, 1), "windows"),
        Face("vegetation", pick(rng, things.LEAVES), 2, FAR, _skyline(rng, 2, 9, 5, 0), "leaves"),
        *_side(rng, left - paths[0], -1, sun),
        *_side(rng, right + paths[1], 1, sun),
    ]
    found = _things(rng, left, right, paths, lane, sun)
    for _, thing in sorted(found, key=lambda item: -item[0]):
        faces += thing
    if rng.random() < 0.6:  # the bonnet of the car that carries the camera, half a metre ahead
        y = camera.height - 0.5 * (height * rng.uniform(0.9, 0.96) - center[1]) / camera.focal
        bonnet = [(-2, y - 1), (-0.4, y - 0.02), (-0.3, y), (0.3, y), (0.4, y - 0.02), (2, y - 1)]
        faces.append(Face("ego vehicle", pick(rng, things.CAR_PAINT), 2, 0.5, bonnet))
    return render(faces, sun, camera, height, width)
