"""The layout of the synthetic world: the things in a scene, and their positions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple, TypeVar

import numpy as np

SIZE = 96
SHAPES = ("circle", "square", "triangle", "star", "cross", "ring")
COLOURS = ("red", "green", "blue", "yellow", "purple", "orange", "white", "black")
SIZES = ("small", "large")
TEXTURES = ("plain", "striped", "dotted")
HELD_OUT = range(10_000_000, 10_100_000)  # training uses smaller seeds

RADII = {"small": (9.0, 11.0), "large": (14.0, 18.0)}
# Minimum distance of centres, relative to the sum of the radii: hides less than 30 % of a thing.
MIN_DISTANCE = 0.79
REACH = 1.2  # distance from a thing's centre to its furthest corner, in radii
MAX_TRIES = 30
TILT = math.radians(20)  # beyond this, a square becomes a diamond, and a cross becomes an x

T = TypeVar("T")


class Thing(NamedTuple):
    """A thing; `x`, `y` and `radius` are in pixels, `angle` is in radians."""

    shape: str
    colour: str
    size: str
    texture: str
    x: float
    y: float
    radius: float
    angle: float


class Scene(NamedTuple):
    """Things in drawing order; later things hide earlier ones.

    `backdrop` seeds everything without meaning: background, noise, and shades of the colours.
    """

    seed: int
    things: tuple[Thing, ...]
    backdrop: int


class Pair(NamedTuple):
    left: Scene
    right: Scene


Attributes = tuple[str, str, str, str]  # shape, colour, size, texture
Palette = tuple[Sequence[str], Sequence[str], Sequence[str], Sequence[str]]


def pick(random: np.random.Generator, values: Sequence[T]) -> T:
    """Choose a value; several times faster than the generator's `choice`."""
    return values[int(random.random() * len(values))]


def shuffled(random: np.random.Generator, values: Sequence[T]) -> list[T]:
    return [values[index] for index in random.permutation(len(values))]


def scene(seed: int) -> Scene:
    """Return the scene of a seed, with two to five things."""
    random = np.random.default_rng(seed)
    palette = _palette(random)
    kinds = [_attributes(palette, random) for _ in range(_count(random))]
    return _place(seed, kinds, random)


def pair(seed: int) -> Pair:
    """Return the two scenes of a seed; most pairs have things in common."""
    random = np.random.default_rng((seed, 1))
    palette = _palette(random)
    left = [_attributes(palette, random) for _ in range(_count(random))]
    if random.random() < 0.2:
        palette, keep_probability = _palette(random), 0.0
    else:
        keep_probability = 0.6
    right = [
        left[index]
        if index < len(left) and random.random() < keep_probability
        else _attributes(palette, random)
        for index in range(_count(random))
    ]
    if random.random() < 0.5:
        left, right = right, left
    return Pair(_place(seed, left, random), _place(seed, right, random))


def _count(random: np.random.Generator) -> int:
    return pick(random, (2, 3, 3, 4, 4, 4, 5, 5, 5, 5))


def _palette(random: np.random.Generator) -> Palette:
    """Choose the attribute values of a scene; few values give its things much in common."""
    return (
        _subset(SHAPES, (1, 2, 2, 3, 3, 6, 6, 6), random),
        _subset(COLOURS, (1, 2, 2, 3, 3, 8, 8, 8), random),
        _subset(SIZES, (1, 2, 2, 2, 2), random),
        _subset(TEXTURES, (1, 2, 3, 3, 3), random),
    )


def _subset(
    values: tuple[str, ...], counts: Sequence[int], random: np.random.Generator
) -> Sequence[str]:
    count = pick(random, counts)
    return values if count == len(values) else shuffled(random, values)[:count]


def _attributes(palette: Palette, random: np.random.Generator) -> Attributes:
    shapes, colours, sizes, textures = palette
    return pick(random, shapes), pick(random, colours), pick(random, sizes), pick(random, textures)


def _place(seed: int, kinds: list[Attributes], random: np.random.Generator) -> Scene:
    things: list[Thing] = []
    for shape, colour, size, texture in kinds:
        low, high = RADII[size]
        radius = low + (high - low) * random.random()
        centre = _centre(things, radius, random)
        if centre is not None:
            angle = (2 * random.random() - 1) * TILT
            things.append(Thing(shape, colour, size, texture, *centre, radius, angle))
    return Scene(seed, tuple(things), int(random.integers(2**62)))


def _centre(
    things: list[Thing], radius: float, random: np.random.Generator
) -> tuple[float, float] | None:
    margin = REACH * radius
    span = SIZE - 2 * margin
    for x, y in (margin + span * random.random((MAX_TRIES, 2))).tolist():
        if all(math.hypot(x - t.x, y - t.y) >= MIN_DISTANCE * (radius + t.radius) for t in things):
            return x, y
    if len(things) > 1:
        return None
    # A scene has at least two things, and the corner opposite the first one is always free.
    first = things[0]
    far_edge = SIZE - margin
    return margin if first.x > SIZE / 2 else far_edge, margin if first.y > SIZE / 2 else far_edge
