"""Descriptions that identify one scene among a thousand: all its things, often with places."""

from __future__ import annotations

import numpy as np

from tokenfold.scenes.language import WORDS, true_caption
from tokenfold.scenes.phrases import Form, a, kind_of, words
from tokenfold.scenes.world import SIZE, Scene, Thing, pick, shuffled

BEGINNINGS = (
    "", "", "A picture of ", "An image with ", "There is ", "The image shows ", "You can see ",
)  # fmt: skip
ROWS = ("top", "", "bottom")
COLUMNS = ("left", "", "right")
MIDDLES = ("in the middle", "in the center")
CORNERS = ("at the {row} {column}", "in the {row} {column} corner", "on the {row} {column}")
EDGES = ("at the {place}", "on the {place}")
LAST = (" and ", ", and ")
# Distance in pixels from the borders of the thirds within which no place is named.
BORDER_MARGIN = 4.0
PLACE_PROBABILITY = 0.6

DESCRIPTION_WORDS = tuple(
    sorted({*WORDS} | words((*BEGINNINGS, *ROWS, *COLUMNS, *MIDDLES, *CORNERS, *EDGES, *LAST)))
)


def description(scene: Scene, random: np.random.Generator) -> str:
    """Describe all things in random order: shape, colour, and often size, texture and place."""
    order = shuffled(random, scene.things)
    parts = [_describe_thing(thing, random) for thing in order]
    text = pick(random, BEGINNINGS) + ", ".join(parts[:-1]) + pick(random, LAST) + parts[-1] + "."
    return text[0].upper() + text[1:]


def query(scene: Scene, random: np.random.Generator) -> str:
    """Return a text that a user may search the scene by: mostly a full description."""
    draw = random.random()
    if draw < 0.65:
        return description(scene, random)
    if draw < 0.85:
        return true_caption(scene, random)
    text = pick(random, BEGINNINGS) + _describe_thing(pick(random, scene.things), random)
    return text[0].upper() + text[1:] + pick(random, ("", "."))


def _describe_thing(thing: Thing, random: np.random.Generator) -> str:
    extra: Form = pick(
        random, ((), ("size",), ("texture",), ("size", "texture"), ("size", "texture"))
    )
    phrase = a(kind_of(thing, ("shape", "colour", *extra)), random)
    if random.random() < PLACE_PROBABILITY:
        place = _place(thing, random)
        if place:
            return f"{phrase} {place}"
    return phrase


def _place(thing: Thing, random: np.random.Generator) -> str | None:
    row, column = _third(thing.y, ROWS), _third(thing.x, COLUMNS)
    if row is None or column is None:
        return None
    if not row and not column:
        return pick(random, MIDDLES)
    if row and column:
        return pick(random, CORNERS).format(row=row, column=column)
    return pick(random, EDGES).format(place=row or column)


def _third(coordinate: float, names: tuple[str, str, str]) -> str | None:
    borders = SIZE / 3, 2 * SIZE / 3
    if any(abs(coordinate - border) < BORDER_MARGIN for border in borders):
        return None
    return names[sum(coordinate > border for border in borders)]
