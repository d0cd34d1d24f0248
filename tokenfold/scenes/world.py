"""The layout of the synthetic world: which things there are, and where."""

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
HELD_OUT = range(10_000_000, 10_100_000)  # training draws seeds below

RADII = {"small": (9.0, 11.0), "large": (14.0, 18.0)}
# Centres at least this share of the radii's sum apart: less than 30 % of a thing is hidden.
APART = 0.79
REACH = 1.2  # radii from a thing's centre to its furthest corner
TRIES = 30
TILT = math.radians(20)  # more would turn a square into a diamond, and a cross into an x

T = TypeVar("T")


class Thing(NamedTuple):
    """One thing; `x`, `y` and `radius` are in pixels, `angle` is in radians."""

    shape: str
    colour: str
    size: str
    texture: str
    x: float
    y: float
    radius: float
    angle: float


class Scene(NamedTuple):
    """Things in the order in which they are drawn; the later ones hide the earlier ones.

    `backdrop` seeds what has no meaning: background, noise, and shades of the colours.
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
    """One of the values; several times faster than the generator's own choice."""
    return values[int(random.random() * len(values))]


def shuffled(random: np.random.Generator, values: Sequence[T]) -> list[T]:
    return [values[at] for at in random.permutation(len(values))]


def scene(seed: int) -> Scene:
    """The scene of a seed: from two to five things."""
    random = np.random.default_rng(seed)
    palette = _palette(random)
    kinds = [_attributes(palette, random) for _ in range(_count(random))]
    return _place(seed, kinds, random)


def pair(seed: int) -> Pair:
    """The two scenes of a seed; in most pairs they have things in common."""
    random = np.random.default_rng((seed, 1))
    palette = _palette(random)
    left = [_attributes(palette, random) for _ in range(_count(random))]
    if random.random() < 0.2:
        palette, kept = _palette(random), 0.0
    else:
        kept = 0.6
    right = [
        left[at] if at < len(left) and random.random() < kept else _attributes(palette, random)
        for at in range(_count(random))
    ]
    if random.random() < 0.5:
        left, right = right, left
    return Pair(_place(seed, left, random), _place(seed, right, random))


def _count(random: np.random.Generator) -> int:
    return pick(random, (2, 3, 3, 4, 4, 4, 5, 5, 5, 5))


def _palette(random: np.random.Generator) -> Palette:
    """The values that a scene draws from; narrow ones give it things with much in common."""
    return (
        _some(SHAPES, (1, 2, 2, 3, 3, 6, 6, 6), random),
        _some(COLOURS, (1, 2, 2, 3, 3, 8, 8, 8), random),
        _some(SIZES, (1, 2, 2, 2, 2), random),
        _some(TEXTURES, (1, 2, 3, 3, 3), random),
    )


def _some(
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
    for x, y in (margin + span * random.random((TRIES, 2))).tolist():
        if all(math.hypot(x - t.x, y - t.y) >= APART * (radius + t.radius) for t in things):
            return x, y
    if len(things) > 1:
        return None
    # A scene has at least two things, and the corner across from the first is always free.
    first = things[0]
    far = SIZE - margin
    return margin if first.x > SIZE / 2 else far, margin if first.y > SIZE / 2 else far
