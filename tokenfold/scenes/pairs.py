"""Statements about a pair of scenes."""

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
    fill_template,
    matches,
    number_of,
    plural,
    present,
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

StatementParts = tuple[str, Kind, dict[str, str]]  # template key, subject, template fields


def statement(pair: Pair, random: np.random.Generator) -> tuple[Text, Text]:
    """Return a statement, with the things that it mentions in the left and in the right scene.

    The mentions include matching things of both scenes, even if the statement is about one scene.
    """
    truth = random.random() < 0.5
    key, kind, fields = _statement_parts(pair, random, truth)
    text, answer = fill_template(STATEMENTS[key], fields, random), "true" if truth else "false"
    left, right = (Text(text, answer, key, (matches(scene.things, kind),)) for scene in pair)
    return left, right


def _statement_parts(pair: Pair, random: np.random.Generator, truth: bool) -> StatementParts:
    things = pair.left.things + pair.right.things
    key = pick(random, KEYS)
    for _ in range(ATTEMPTS):
        side = int(random.integers(2))
        here, there = (pair.left.things, pair.right.things)[:: 1 - 2 * side]
        form: Form = pick(random, (SHORT, FORMS)[key in PRESENCE and key != "equal"])
        if key == "total" and random.random() < 0.15:
            form = ()
        kinds = present(things, form)
        absent_kind = absent(things, form, random) if form and key != "equal" else None
        if absent_kind is not None:
            kinds.append(absent_kind)
        choice = _choose(key, kinds, here, there, random, truth)
        if choice is not None:
            kind, fields = choice
            return key, kind, fields | {"side": SIDES[side], "other": SIDES[1 - side]}
    while True:
        # Every pair has kinds that are present, and kinds that are absent.
        form = pick(random, FORMS)
        absent_kind = absent(things, form, random)
        if absent_kind is not None:
            kind = pick(random, present(things, form)) if truth else absent_kind
            return "either", kind, _presence_fields(kind, random)


def _choose(
    key: str,
    kinds: list[Kind],
    here: Things,
    there: Things,
    random: np.random.Generator,
    truth: bool,
) -> tuple[Kind, dict[str, str]] | None:
    """Choose a kind with which the statement has the requested truth value.

    Returns:
        The kind, and the fields of the template; None if the statement is true for all of the kinds
        or false for all of them, because then the form would reveal the answer.
    """
    counts = {kind: (len(matches(here, kind)), len(matches(there, kind))) for kind in kinds}
    if key in PRESENCE:
        true_kinds = [kind for kind, numbers in counts.items() if PRESENCE[key](*numbers)]
        false_kinds = [kind for kind in kinds if kind not in true_kinds]
        if not true_kinds or not false_kinds:
            return None
        kind = pick(random, true_kinds if truth else false_kinds)
        return kind, _presence_fields(kind, random)
    if key == "more":
        sign = 1 if truth else -1
        true_kinds = [
            kind
            for kind, (here_count, there_count) in counts.items()
            if sign * (here_count - there_count) > 0
        ]
        if not true_kinds:
            return None
        kind = pick(random, true_kinds)
        return kind, {"x": plural(kind, random)}
    numbers = {kind: sum(both) if key == "total" else both[0] for kind, both in counts.items()}
    stated_number = pick(
        random, (1, 2, 2, 3, 3, 4, 5) if key != "total" else (1, 2, 3, 3, 4, 4, 5, 6, 7, 8)
    )
    if kinds == [Kind()]:
        kind, actual = kinds[0], numbers[kinds[0]]
        stated_number = actual if truth else actual + pick(random, (-1, 1))
        stated_number = stated_number if 4 <= stated_number <= 10 else 2 * actual - stated_number
    else:
        true_kinds = [kind for kind, number in numbers.items() if number == stated_number]
        false_kinds = [
            kind for kind, number in numbers.items() if 1 <= abs(number - stated_number) <= 2
        ]
        if not true_kinds or not false_kinds:
            return None
        kind = pick(random, true_kinds if truth else false_kinds)
    return kind, {
        "verb": "is" if stated_number == 1 else "are",
        "n": number_of(stated_number, kind, random),
    }


def _presence_fields(kind: Kind, random: np.random.Generator) -> dict[str, str]:
    phrase = a(kind, random)
    return {"a": phrase, "a_bare": phrase.partition(" ")[2], "x": plural(kind, random)}
