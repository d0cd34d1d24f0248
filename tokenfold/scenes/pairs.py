"""Statements about two scenes."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from tokenfold.scenes.phrases import (
    FORMS,
    SHORT,
    Form,
    Kind,
    Text,
    Things,
    a,
    absent,
    matches,
    number_of,
    plural,
    present,
    worded,
)
from tokenfold.scenes.templates import STATEMENTS
from tokenfold.scenes.world import Pair, pick

KEYS = tuple(STATEMENTS)
SIDES = ("left", "right")
PRESENCE: dict[str, Callable[[int, int], bool]] = {
    "both": lambda here, there: here > 0 and there > 0,
    "one": lambda here, there: (here > 0) != (there > 0),
    "neither": lambda here, there: here == 0 and there == 0,
    "either": lambda here, there: here > 0 or there > 0,
    "side": lambda here, _: here > 0,
    "side only": lambda here, there: here > 0 and there == 0,
    "equal": lambda here, there: here == there,
}
ATTEMPTS = 15

Found = tuple[str, Kind, dict[str, str]]  # the key of the templates, and what they take


def statement(pair: Pair, random: np.random.Generator) -> tuple[Text, Text]:
    """One statement, with what it mentions in the left and in the right scene.

    A phrase mentions what fits it in both scenes, also where the statement is about one of them.
    """
    truth = random.random() < 0.5
    key, kind, fields = _found(pair, random, truth)
    text, answer = worded(STATEMENTS[key], fields, random), "true" if truth else "false"
    left, right = (Text(text, answer, key, (matches(s.things, kind),)) for s in pair)
    return left, right


def _found(pair: Pair, random: np.random.Generator, truth: bool) -> Found:
    things = pair.left.things + pair.right.things
    key = pick(random, KEYS)
    for _ in range(ATTEMPTS):
        side = int(random.integers(2))
        here, there = (pair.left.things, pair.right.things)[:: 1 - 2 * side]
        form: Form = pick(random, (SHORT, FORMS)[key in PRESENCE and key != "equal"])
        if key == "total" and random.random() < 0.15:
            form = ()
        kinds = present(things, form)
        nothing = absent(things, form, random) if form and key != "equal" else None
        if nothing is not None:
            kinds.append(nothing)
        found = _choose(key, kinds, here, there, random, truth)
        if found is not None:
            kind, fields = found
            return key, kind, fields | {"side": SIDES[side], "other": SIDES[1 - side]}
    while True:
        # Each pair has a kind that is there, and one that is not.
        form = pick(random, FORMS)
        nothing = absent(things, form, random)
        if nothing is not None:
            kind = pick(random, present(things, form)) if truth else nothing
            return "either", kind, _presence_fields(kind, random)


def _choose(
    key: str,
    kinds: list[Kind],
    here: Things,
    there: Things,
    random: np.random.Generator,
    truth: bool,
) -> tuple[Kind, dict[str, str]] | None:
    """A kind with which the statement is true or false as asked.

    None where these kinds could not make it both: then its form would tell which it is.
    """
    counts = {kind: (len(matches(here, kind)), len(matches(there, kind))) for kind in kinds}
    if key in PRESENCE:
        right = [kind for kind, numbers in counts.items() if PRESENCE[key](*numbers)]
        wrong = [kind for kind in kinds if kind not in right]
        if not right or not wrong:
            return None
        kind = pick(random, right if truth else wrong)
        return kind, _presence_fields(kind, random)
    if key == "more":
        sign = 1 if truth else -1
        right = [kind for kind, (one, other) in counts.items() if sign * (one - other) > 0]
        if not right:
            return None
        kind = pick(random, right)
        return kind, {"x": plural(kind, random)}
    numbers = {kind: sum(both) if key == "total" else both[0] for kind, both in counts.items()}
    said = pick(random, (1, 2, 2, 3, 3, 4, 5) if key != "total" else (1, 2, 3, 3, 4, 4, 5, 6, 7, 8))
    if kinds == [Kind()]:
        kind, actual = kinds[0], numbers[kinds[0]]
        said = actual if truth else actual + pick(random, (-1, 1))
        said = said if 4 <= said <= 10 else 2 * actual - said
    else:
        right = [kind for kind, number in numbers.items() if number == said]
        wrong = [kind for kind, number in numbers.items() if 1 <= abs(number - said) <= 2]
        if not right or not wrong:
            return None
        kind = pick(random, right if truth else wrong)
    return kind, {"verb": "is" if said == 1 else "are", "n": number_of(said, kind, random)}


def _presence_fields(kind: Kind, random: np.random.Generator) -> dict[str, str]:
    phrase = a(kind, random)
    return {"a": phrase, "a_bare": phrase.partition(" ")[2], "x": plural(kind, random)}
