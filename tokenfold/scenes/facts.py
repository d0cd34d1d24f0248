"""Facts about a scene, true or false on request, that questions and claims put into words.

A maker first chooses the form of a text and checks that both a true and a false fact exist in this
form. Only then does it choose the requested one, so that the words alone do not reveal the answer.
A maker returns None if there is no such fact.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import permutations
from typing import NamedTuple

import numpy as np

from tokenfold.scenes.phrases import (
    FORMS,
    OPPOSITE,
    RELATIONS,
    SHORT,
    VALUES,
    Form,
    Kind,
    Matches,
    Things,
    a,
    absent,
    kind_of,
    matches,
    number_of,
    plural,
    present,
    refer,
    sides,
    the,
)
from tokenfold.scenes.world import pick, shuffled


class Fact(NamedTuple):
    """Fields for the templates of `key`, and the things that the fact's noun phrases match."""

    key: str
    fields: dict[str, str]
    mentions: tuple[Matches, ...]


Maker = Callable[[Things, np.random.Generator, bool], Fact | None]


def existence(things: Things, random: np.random.Generator, truth: bool) -> Fact | None:
    form = pick(random, FORMS)
    present_kind, absent_kind = kind_of(pick(random, things), form), absent(things, form, random)
    if absent_kind is None:
        return None
    key, true_if_present = pick(random, (("existence", True), ("any", True), ("absence", False)))
    kind = present_kind if truth == true_if_present else absent_kind
    fields = {"a": a(kind, random), "x": plural(kind, random)}
    return Fact(key, fields, (matches(things, kind),))


def count(things: Things, random: np.random.Generator, truth: bool) -> Fact | None:
    form = pick(random, ((), *SHORT))
    counts = {kind: len(matches(things, kind)) for kind in present(things, form)}
    if not form:
        # A scene has a single total, so only a changed number can make the claim false.
        actual = len(things)
        stated_number = actual if truth else actual + pick(random, (-1, 1))
        stated_number = stated_number if 2 <= stated_number <= 5 else 2 * actual - stated_number
        kind = Kind()
    else:
        absent_kind = absent(things, form, random)
        if absent_kind is not None:
            counts[absent_kind] = 0
        stated_number = pick(random, (1, 2, 2, 3, 3, 4, 5))
        true_kinds = [kind for kind, number in counts.items() if number == stated_number]
        false_kinds = [
            kind for kind, number in counts.items() if 1 <= abs(number - stated_number) <= 2
        ]
        if not true_kinds or not false_kinds:
            return None
        kind = pick(random, true_kinds if truth else false_kinds)
    fields = {
        "verb": "is" if stated_number == 1 else "are",
        "n": number_of(stated_number, kind, random),
    }
    return Fact("count", fields, (matches(things, kind),))


def attribute(things: Things, random: np.random.Generator, truth: bool) -> Fact | None:
    name = pick(random, tuple(VALUES))
    index = pick(random, range(len(things)))
    kind = refer(things, index, random, avoid=(name,))
    if kind is None:
        return None
    value = getattr(things[index], name)
    if not truth:
        values_in_scene = [getattr(thing, name) for thing in things]
        present_values = [other for other in values_in_scene if other != value]
        other_values = [other for other in VALUES[name] if other != value]
        use_present = present_values and random.random() < 0.6
        value = pick(random, present_values if use_present else other_values)
    phrase = a(Kind(shape=value), random) if name == "shape" else value
    return Fact("attribute", {"a": the(kind, random), "value": phrase}, ((index,),))


def relation(things: Things, random: np.random.Generator, truth: bool) -> Fact | None:
    first, second = random.permutation(len(things))[:2].tolist()
    positions = sides(things[first], things[second])
    kinds = refer(things, first, random), refer(things, second, random)
    if not positions or kinds[0] is None or kinds[1] is None:
        return None
    side = pick(random, positions)
    phrase = pick(random, RELATIONS[side if truth else OPPOSITE[side]])
    fields = {"a": the(kinds[0], random), "rel": phrase, "b": the(kinds[1], random)}
    return Fact("relation", fields, ((first,), (second,)))


def comparison(things: Things, random: np.random.Generator, truth: bool) -> Fact | None:
    maker = pick(random, (_numbers, _numbers, _equal_numbers, _extent, _extent, _sameness))
    for _ in range(8):
        fact = maker(things, random, truth)
        if fact is not None:
            return fact
    return None


def every(things: Things, random: np.random.Generator, truth: bool) -> Fact | None:
    """Return a claim that all things of a kind, at least two, have an attribute value."""
    name = pick(random, tuple(VALUES))
    form: Form = pick(random, ((), *((other,) for other in VALUES if other != name)))
    options: dict[bool, list[tuple[Kind, str]]] = {True: [], False: []}
    for kind in present(things, form):
        attribute_values = [getattr(things[index], name) for index in matches(things, kind)]
        if len(attribute_values) > 1:
            options[len(set(attribute_values)) == 1] += [
                (kind, value) for value in dict.fromkeys(attribute_values)
            ]
    if not options[True]:
        return None
    kind, value = pick(random, options[True])
    if not truth:
        if options[False] and random.random() < 0.7:
            kind, value = pick(random, options[False])
        else:
            value = pick(random, [other for other in VALUES[name] if other != value])
    plain = plural(Kind(shape=value), random) if name == "shape" else value
    fields = {"x": plural(kind, random), "value": plain}
    return Fact("every", fields, (matches(things, kind),))


def _two_kinds(
    things: Things, random: np.random.Generator
) -> tuple[list[tuple[Kind, Kind]], list[tuple[Kind, Kind]]]:
    """Return pairs of kinds with equal numbers of things, and pairs whose first kind has more."""
    form = pick(random, SHORT)
    kinds = shuffled(random, present(things, form))
    absent_kind = absent(things, form, random)
    if absent_kind is not None:
        kinds.append(absent_kind)
    numbers = {kind: len(matches(things, kind)) for kind in kinds}
    pairs = list(permutations(kinds, 2))
    same = [(first, second) for first, second in pairs if numbers[first] == numbers[second]]
    more = [(first, second) for first, second in pairs if numbers[first] > numbers[second]]
    return same, more


def _numbers(things: Things, random: np.random.Generator, truth: bool) -> Fact | None:
    _, options = _two_kinds(things, random)
    if not options:
        return None
    more, less = pick(random, options)
    key = pick(random, ("more", "fewer"))
    pair = (more, less) if (key == "more") == truth else (less, more)
    fields = {"x": plural(pair[0], random), "y": plural(pair[1], random)}
    return Fact(key, fields, (matches(things, pair[0]), matches(things, pair[1])))


def _equal_numbers(things: Things, random: np.random.Generator, truth: bool) -> Fact | None:
    same, more = _two_kinds(things, random)
    if not same or not more:
        return None
    first, second = pick(random, same if truth else more)
    pair = (first, second) if random.random() < 0.5 else (second, first)
    fields = {"x": plural(pair[0], random), "y": plural(pair[1], random)}
    return Fact("equal", fields, (matches(things, pair[0]), matches(things, pair[1])))


def _extent(things: Things, random: np.random.Generator, truth: bool) -> Fact | None:
    large = [index for index, thing in enumerate(things) if thing.size == "large"]
    small = [index for index, thing in enumerate(things) if thing.size == "small"]
    if not large or not small:
        return None
    pair = pick(random, large), pick(random, small)
    key = pick(random, ("larger", "smaller"))
    first, second = pair if (key == "larger") == truth else pair[::-1]
    kinds = [refer(things, index, random, avoid=("size",)) for index in (first, second)]
    return _fact_about_two(key, (first, second), kinds, random)


def _sameness(things: Things, random: np.random.Generator, truth: bool) -> Fact | None:
    name = pick(random, ("shape", "colour", "texture", "size"))
    key = pick(random, ("same", "different"))
    first, second = random.permutation(len(things))[:2].tolist()
    same = getattr(things[first], name) == getattr(things[second], name)
    if same != (truth == (key == "same")):
        return None
    kinds = [refer(things, index, random, avoid=(name,)) for index in (first, second)]
    return _fact_about_two(key, (first, second), kinds, random, {"name": name})


def _fact_about_two(
    key: str,
    indexes: tuple[int, int],
    kinds: list[Kind | None],
    random: np.random.Generator,
    fields: dict[str, str] | None = None,
) -> Fact | None:
    first, second = kinds
    if first is None or second is None:
        return None
    both = {"a": the(first, random), "b": the(second, random)}
    return Fact(key, both | (fields or {}), ((indexes[0],), (indexes[1],)))
