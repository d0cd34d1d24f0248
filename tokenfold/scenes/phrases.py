"""Noun phrases: kinds of things, the things they match, and their wording."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from itertools import combinations
from typing import NamedTuple

import numpy as np

from tokenfold.scenes.world import (
    COLOURS,
    SHAPES,
    SIZES,
    TEXTURES,
    Thing,
    pick,
    shuffled,
)

Things = tuple[Thing, ...]
Matches = tuple[int, ...]
Form = tuple[str, ...]  # names of the attributes that a kind fixes

VALUES = {"shape": SHAPES, "colour": COLOURS, "size": SIZES, "texture": TEXTURES}
FORMS: tuple[Form, ...] = tuple(
    form for count in range(1, 5) for form in combinations(VALUES, count)
)
SHORT = tuple(form for form in FORMS if len(form) <= 2)
SIZE_WORDS = {"small": ("small", "small", "little"), "large": ("large", "large", "big")}
NOUNS = ("thing", "object")
NUMBERS = ("no", "one", "two", "three", "four", "five")
NUMBERS_UP_TO_TEN = (*NUMBERS, "six", "seven", "eight", "nine", "ten")
MARGIN = 12.0  # minimum difference of position in pixels for texts about directions
OPPOSITE = {"left": "right", "right": "left", "above": "below", "below": "above"}
RELATIONS = {
    "left": ("to the left of", "left of", "on the left of", "further left than"),
    "right": ("to the right of", "right of", "on the right of", "further right than"),
    "above": ("above", "higher than", "over", "higher up than"),
    "below": ("below", "lower than", "under", "lower down than"),
}


class Kind(NamedTuple):
    """A description of things; an empty attribute matches any value."""

    shape: str = ""
    colour: str = ""
    size: str = ""
    texture: str = ""


class Text(NamedTuple):
    """A text about a scene, with its answer.

    Attributes:
        mentions: for each noun phrase about things of the scene, in order, the indexes of the
            matching things. Words for anything else (the image, a cat) are not included.
    """

    text: str
    answer: str
    family: str
    mentions: tuple[Matches, ...]


def kind_of(thing: Thing, form: Iterable[str]) -> Kind:
    return Kind(**{name: getattr(thing, name) for name in form})


def fits(thing: Thing, kind: Kind) -> bool:
    return (
        (not kind.shape or kind.shape == thing.shape)
        and (not kind.colour or kind.colour == thing.colour)
        and (not kind.size or kind.size == thing.size)
        and (not kind.texture or kind.texture == thing.texture)
    )


def matches(things: Things, kind: Kind) -> Matches:
    return tuple(index for index, thing in enumerate(things) if fits(thing, kind))


def present(things: Things, form: Form) -> list[Kind]:
    """Return the kinds of a form that the things have."""
    return list(dict.fromkeys(kind_of(thing, form) for thing in things))


def absent(things: Things, form: Form, random: np.random.Generator) -> Kind | None:
    """Return a kind of a form that no thing has, one attribute away from a kind that one has."""
    for _ in range(6):
        kind = with_changed_attribute(kind_of(pick(random, things), form), things, random)
        if not matches(things, kind):
            return kind
    return None


def with_changed_attribute(kind: Kind, things: Things, random: np.random.Generator) -> Kind:
    """Return the kind with another value of one attribute, preferably a value in the scene."""
    name = pick(random, [name for name in kind._fields if getattr(kind, name)])
    old_value = getattr(kind, name)
    present_values = [getattr(thing, name) for thing in things if getattr(thing, name) != old_value]
    other_values = [value for value in VALUES[name] if value != old_value]
    value = pick(
        random, present_values if present_values and random.random() < 0.6 else other_values
    )
    return kind._replace(**{name: value})


def refer(
    things: Things, index: int, random: np.random.Generator, avoid: Sequence[str] = ()
) -> Kind | None:
    """Return a kind that only this thing has, usually the shortest; None if there is none."""
    allowed = [name for name in VALUES if name not in avoid]
    for count in range(1, len(allowed) + 1):
        for form in shuffled(random, list(combinations(allowed, count))):
            if len(matches(things, kind_of(things[index], form))) == 1:
                if count < len(allowed) and random.random() < 0.25:
                    form = (*form, pick(random, [name for name in allowed if name not in form]))
                return kind_of(things[index], form)
    return None


def singular(kind: Kind, random: np.random.Generator) -> str:
    size = pick(random, SIZE_WORDS[kind.size]) if kind.size else ""
    noun = kind.shape or pick(random, NOUNS)
    return " ".join(word for word in (size, kind.texture, kind.colour, noun) if word)


def plural(kind: Kind, random: np.random.Generator) -> str:
    return plural_of(singular(kind, random))


def plural_of(phrase: str) -> str:
    return phrase + ("es" if phrase.endswith("cross") else "s")


def the(kind: Kind, random: np.random.Generator) -> str:
    return "the " + singular(kind, random)


def a(kind: Kind, random: np.random.Generator) -> str:
    return with_article(singular(kind, random))


def with_article(phrase: str) -> str:
    return ("an " if phrase[0] in "aeiou" else "a ") + phrase


def number_of(count: int, kind: Kind, random: np.random.Generator) -> str:
    """Return a phrase such as "two red circles"."""
    phrase = singular(kind, random)
    return f"{NUMBERS_UP_TO_TEN[count]} {phrase if count == 1 else plural_of(phrase)}"


def sides(first: Thing, second: Thing, margin: float = MARGIN) -> list[str]:
    """Return the directions in which the first thing clearly lies from the second."""
    directions = []
    if abs(first.x - second.x) >= margin:
        directions.append("left" if first.x < second.x else "right")
    if abs(first.y - second.y) >= margin:
        directions.append("above" if first.y < second.y else "below")
    return directions


def fill_template(
    templates: Sequence[str], fields: dict[str, str], random: np.random.Generator
) -> str:
    text = pick(random, templates).format(**fields)
    return text[0].upper() + text[1:]


def words(texts: Iterable[str]) -> set[str]:
    """Return the words and punctuation marks of texts and templates, in lower case."""
    vocabulary_words: set[str] = set()
    for text in texts:
        vocabulary_words.update(re.findall(r"\w+|[^\w\s]", re.sub(r"\{\w+\}s?", " ", text.lower())))
    return vocabulary_words


def vocabulary() -> set[str]:
    """Return all words that can replace a template's field."""
    nouns = (*SHAPES, *NOUNS)
    texts = [*COLOURS, *TEXTURES, *nouns, *map(plural_of, nouns), *VALUES, "a an the is are"]
    for choices in (*SIZE_WORDS.values(), *RELATIONS.values(), NUMBERS_UP_TO_TEN):
        texts += choices
    return words(texts)
