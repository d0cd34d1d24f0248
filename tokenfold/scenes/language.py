"""Texts about a single scene: questions, hypotheses and captions."""

from __future__ import annotations

import numpy as np

from tokenfold.scenes import facts
from tokenfold.scenes.facts import Fact, Maker
from tokenfold.scenes.phrases import (
    OPPOSITE,
    RELATIONS,
    SHORT,
    VALUES,
    Form,
    Kind,
    Matches,
    Text,
    Things,
    a,
    absent,
    fill_template,
    kind_of,
    matches,
    plural,
    present,
    refer,
    sides,
    the,
    vocabulary,
    with_changed_attribute,
    words,
)
from tokenfold.scenes.templates import (
    CAPTIONS,
    CLAIMS,
    EVERY,
    FILLERS,
    HIDDEN,
    OPEN,
    QUALITIES,
    STUFF,
    UNKNOWABLE,
    WHO,
    YES_NO,
)
from tokenfold.scenes.world import COLOURS, SHAPES, SIZES, TEXTURES, Scene, Thing, pick

COUNTS = ("0", "1", "2", "3", "4", "5")
ANSWERS = ("yes", "no", *COUNTS, *COLOURS, *SHAPES, *SIZES, *TEXTURES)
LABELS = ("entailment", "neutral", "contradiction")
WORDS = tuple(
    sorted(
        vocabulary()
        | words(text for templates in EVERY for texts in templates.values() for text in texts)
        | words(text for texts in FILLERS for text in texts)
        # Field names that take an "s" in a template.
        | {name + "s" for name in VALUES}
    )
)

FAMILIES = ("colour", "shape", "look", "count", "existence", "comparison", "relation")
YES_NO_MAKERS: dict[str, Maker] = {
    "existence": facts.existence,
    "comparison": facts.comparison,
    "relation": facts.relation,
}
CLAIM_MAKERS: tuple[Maker, ...] = (
    facts.existence,
    facts.count,
    facts.attribute,
    facts.relation,
    facts.comparison,
    facts.every,
)
# Larger counts are rarer, so they get a larger weight when a scene offers them.
COUNT_WEIGHTS = (1.5, 1.5, 1.8, 2.2, 3.6, 7.0)
ATTEMPTS = 12


def question(scene: Scene, random: np.random.Generator) -> Text:
    family = pick(random, FAMILIES)
    truth = random.random() < 0.5
    if family == "relation" and random.random() < 0.3:
        family = "beside"
    for _ in range(ATTEMPTS):
        text = _question(family, scene.things, random, truth)
        if text is not None:
            return text
    return _count(scene.things, random)


def hypothesis(scene: Scene, random: np.random.Generator) -> Text:
    label = pick(random, LABELS)
    if label == "neutral":
        return _neutral(scene.things, random)
    fact = _fact(pick(random, CLAIM_MAKERS), scene.things, random, label == "entailment")
    return Text(_render(CLAIMS[fact.key], fact, random), label, fact.key, fact.mentions)


def caption(scene: Scene, random: np.random.Generator) -> Text:
    """Return a caption, true or nearly true with equal probability."""
    truth = random.random() < 0.5
    answer = "true" if truth else "false"
    draw = random.random()
    if draw >= 0.15:
        key = "relation" if draw < 0.8 else "both"
        for _ in range(ATTEMPTS):
            fact = _caption_fact(key, scene.things, random, truth)
            if fact is not None:
                return Text(_render(CAPTIONS[key], fact, random), answer, key, fact.mentions)
    fact = _fact(facts.count, scene.things, random, truth)
    key = fact.key if fact.key in CAPTIONS else "claim"
    templates = CAPTIONS.get(fact.key, CLAIMS[fact.key])
    return Text(_render(templates, fact, random), answer, key, fact.mentions)


def true_caption(scene: Scene, random: np.random.Generator) -> str:
    """Return a true caption about two or three of the things."""
    things = scene.things
    order = random.permutation(len(things)).tolist()
    pairs = [(i, j) for i in order for j in order if i != j and sides(things[i], things[j])]
    first, second = pairs[0] if pairs else (order[0], order[1])
    fields = {
        "a": a(_detailed_kind(things[first], random), random),
        "b": a(_detailed_kind(things[second], random), random),
    }
    others = [index for index in order if index not in (first, second)]
    if not pairs:
        return fill_template(CAPTIONS["both"], fields, random)
    fields["rel"] = pick(random, RELATIONS[pick(random, sides(things[first], things[second]))])
    if not others or random.random() < 0.4:
        return fill_template(CAPTIONS["relation"], fields, random)
    fields["c"] = a(kind_of(things[others[0]], ("shape", "colour")), random)
    return fill_template(CAPTIONS["third"], fields, random)


def _question(family: str, things: Things, random: np.random.Generator, truth: bool) -> Text | None:
    if family == "count":
        return _count(things, random)
    if family in YES_NO_MAKERS:
        fact = YES_NO_MAKERS[family](things, random, truth)
        if fact is None:
            return None
        text = _render(YES_NO[fact.key], fact, random)
        return Text(text, "yes" if truth else "no", family, fact.mentions)
    if family == "beside":
        return _beside(things, random)
    name = pick(random, ("texture", "size")) if family == "look" else family
    index = pick(random, range(len(things)))
    kind = refer(things, index, random, avoid=(name,))
    if kind is None:
        return None
    text = fill_template(OPEN[name], {"a": the(kind, random)}, random)
    return Text(text, getattr(things[index], name), name, ((index,),))


def _count(things: Things, random: np.random.Generator) -> Text:
    options: dict[int, list[list[Kind]]] = {len(things): [[Kind()]]}
    for form in SHORT:
        by_count: dict[int, list[Kind]] = {}
        for kind in present(things, form):
            by_count.setdefault(len(matches(things, kind)), []).append(kind)
        for number, kinds in by_count.items():
            options.setdefault(number, []).append(kinds)
    absent_kind = absent(things, pick(random, SHORT), random)
    if absent_kind is not None:
        options[0] = [[absent_kind]]
    numbers = list(options)
    weights = np.cumsum([COUNT_WEIGHTS[number] for number in numbers])
    answer = numbers[int(np.searchsorted(weights, random.random() * weights[-1], side="right"))]
    kind = pick(random, pick(random, options[answer]))
    text = fill_template(OPEN["count"], {"x": plural(kind, random)}, random)
    return Text(text, COUNTS[answer], "count", (matches(things, kind),))


def _beside(things: Things, random: np.random.Generator) -> Text | None:
    """Ask for an attribute of the only thing on one side of another thing; None if not unique."""
    name = pick(random, ("colour", "colour", "shape", "shape", "texture"))
    index = pick(random, range(len(things)))
    kind = refer(things, index, random)
    side = pick(random, tuple(RELATIONS))
    positions_on_side = [
        position for position, thing in enumerate(things) if side in sides(thing, things[index])
    ]
    # Other things must not appear to be on that side as well.
    nearly_on_side = [
        position
        for position, thing in enumerate(things)
        if side in sides(thing, things[index], 4.0)
    ]
    if kind is None or len(positions_on_side) != 1 or nearly_on_side != positions_on_side:
        return None
    beside = f"{the(Kind(), random)} {pick(random, RELATIONS[side])} {the(kind, random)}"
    text = fill_template(OPEN[name], {"a": beside}, random)
    return Text(
        text,
        getattr(things[positions_on_side[0]], name),
        "relation",
        ((positions_on_side[0],), (index,)),
    )


def _fact(maker: Maker, things: Things, random: np.random.Generator, truth: bool) -> Fact:
    for _ in range(ATTEMPTS):
        fact = maker(things, random, truth)
        if fact is not None:
            return fact
    while True:
        fact = facts.existence(things, random, truth)
        if fact is not None:
            return fact


def _render(templates: tuple[str, ...], fact: Fact, random: np.random.Generator) -> str:
    fields = fact.fields
    if "a" in fields:
        fields = fields | {"a_bare": fields["a"].partition(" ")[2]}
    return fill_template(templates, fields, random)


def _neutral(things: Things, random: np.random.Generator) -> Text:
    key = pick(random, ("one", "one", "one", "two", "kinds"))
    fields = {
        "quality": pick(random, QUALITIES),
        "stuff": pick(random, STUFF),
        "who": pick(random, WHO),
        "hidden": pick(random, HIDDEN),
        "value": pick(random, (*COLOURS, *TEXTURES)),
        "rel": pick(random, RELATIONS[pick(random, tuple(RELATIONS))]),
    }
    order = random.permutation(len(things)).tolist()
    unique_kinds = [(index, kind) for index in order if (kind := refer(things, index, random))]
    mentions: list[Matches]
    if key == "kinds" or len(unique_kinds) < (2 if key == "two" else 1):
        key = "kinds"
        kind = kind_of(pick(random, things), pick(random, SHORT))
        fields["x"] = plural(kind, random)
        mentions = [matches(things, kind)]
    else:
        unique_kinds = unique_kinds[: 2 if key == "two" else 1]
        for field, (_, kind) in zip("ab", unique_kinds, strict=False):
            fields[field] = the(kind, random)
        mentions = [(index,) for index, _ in unique_kinds]
    return Text(
        fill_template(UNKNOWABLE[key], fields, random), "neutral", "neutral", tuple(mentions)
    )


def _detailed_kind(thing: Thing, random: np.random.Generator) -> Kind:
    """Return the kind of a thing by shape, colour and mostly one more attribute."""
    extra: Form = pick(random, ((), ("size",), ("size",), ("texture",), ("texture",)))
    return kind_of(thing, ("shape", "colour", *extra))


def _caption_fact(
    key: str, things: Things, random: np.random.Generator, truth: bool
) -> Fact | None:
    first, second = random.permutation(len(things))[:2].tolist()
    positions = sides(things[first], things[second])
    if not positions:
        return None
    side = pick(random, positions)
    first_kind, second_kind = (
        _detailed_kind(things[first], random),
        _detailed_kind(things[second], random),
    )
    if not truth:
        change = pick(random, ("one", "other", "swap", "side", "side"))
        if change == "side" and key == "relation":
            side = OPPOSITE[side]
        elif change in ("swap", "side"):
            name = pick(random, ("shape", "colour"))
            values = getattr(first_kind, name), getattr(second_kind, name)
            first_kind, second_kind = (
                first_kind._replace(**{name: values[1]}),
                second_kind._replace(**{name: values[0]}),
            )
        elif change == "one":
            first_kind = with_changed_attribute(first_kind, things, random)
        else:
            second_kind = with_changed_attribute(second_kind, things, random)
    first_matches, second_matches = matches(things, first_kind), matches(things, second_kind)
    pairs = [(i, j) for i in first_matches for j in second_matches if i != j]
    if not truth and key == "relation":
        # Every pair that fits the words must clearly be the other way around.
        if any(OPPOSITE[side] not in sides(things[i], things[j]) for i, j in pairs):
            return None
    elif not truth and pairs:
        return None
    fields = {"a": a(first_kind, random), "b": a(second_kind, random)}
    fields["rel"] = pick(random, RELATIONS[side])
    return Fact(key, fields, (first_matches, second_matches))
