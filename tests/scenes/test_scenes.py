"""The synthetic world: its texts are true, and its answers are balanced."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from itertools import pairwise

import numpy as np
import pytest

from tokenfold import scenes
from tokenfold.scenes import Scene, Text, Thing

COUNT = 2000
WORLD = [scenes.scene(seed) for seed in range(COUNT)]
PAIRS = [scenes.pair(seed) for seed in range(COUNT)]
NUMBERS = {
    word: number
    for number, word in enumerate(["no", "one", "two", "three", "four", "five", "six", "seven"])
}
LAYOUT = [
    ("ring", "white", "small", "dotted"),
    ("circle", "white", "small", "dotted"),
    ("star", "purple", "small", "plain"),
    ("circle", "white", "large", "striped"),
]  # of seed 0
CENTRE = (84.08, 82.89)
SHAPE = "|".join(scenes.SHAPES)
ADJECTIVE = f"(?:{'|'.join((*scenes.COLOURS, *scenes.TEXTURES, *scenes.SIZES, 'big', 'little'))})"
SYNONYMS = {"big": "large", "little": "small"}


def texts(make: Callable[[Scene, np.random.Generator], Text]) -> list[Text]:
    random = np.random.default_rng(0)
    return [make(scene, random) for scene in WORLD]


QUESTIONS = texts(scenes.question)
HYPOTHESES = texts(scenes.hypothesis)
CAPTIONS = texts(scenes.caption)
TRUE_CAPTIONS = [
    scenes.true_caption(scene, random) for random in [np.random.default_rng(0)] for scene in WORLD
]
STATEMENTS = [
    scenes.statement(pair, random) for random in [np.random.default_rng(0)] for pair in PAIRS
]


def fitting(phrase: str, things: Iterable[Thing]) -> list[int]:
    """Return the indexes of the things that have every attribute named in a phrase."""
    words = [SYNONYMS.get(word, word) for word in phrase.split()]
    last = re.sub(r"(?<=cross)es$|s$", "", words[-1]) if words[-1] != "cross" else words[-1]
    attributes = {*words[:-1], last} - {
        "thing",
        "object",
        "a",
        "an",
        "the",
        "any",
        "things",
        "objects",
    }
    known = {*scenes.SHAPES, *scenes.COLOURS, *scenes.SIZES, *scenes.TEXTURES}
    assert attributes <= known, phrase
    return [
        number
        for number, t in enumerate(things)
        if attributes <= {t.shape, t.colour, t.size, t.texture}
    ]


def tokens(text: str) -> list[str]:
    return re.findall(r"\w+|[^\w\s]", text.lower())


def shares(texts: Iterable[Text]) -> dict[str, tuple[int, float]]:
    """Return, by family, the number of texts and the share of the most frequent answer."""
    answers: dict[str, Counter[str]] = defaultdict(Counter)
    for text in texts:
        answers[text.family][text.answer] += 1
    return {family: (c.total(), max(c.values()) / c.total()) for family, c in answers.items()}


def test_a_seed_determines_the_world() -> None:
    assert scenes.scene(7) == WORLD[7]
    assert scenes.pair(7) == PAIRS[7]
    np.testing.assert_array_equal(scenes.draw(WORLD[7]), scenes.draw(scenes.scene(7)))
    assert scenes.question(WORLD[7], np.random.default_rng(1)) == scenes.question(
        WORLD[7], np.random.default_rng(1)
    )
    assert scenes.statement(PAIRS[7], np.random.default_rng(1)) == scenes.statement(
        PAIRS[7], np.random.default_rng(1)
    )
    layouts = {scene.things for scene in WORLD} | {s.things for pair in PAIRS for s in pair}
    assert len(layouts) == 3 * COUNT


def test_the_layout_of_a_seed_never_changes() -> None:
    first = WORLD[0].things[0]
    assert [thing[:4] for thing in WORLD[0].things] == LAYOUT
    assert (first.x, first.y) == pytest.approx(CENTRE, abs=0.01)


def test_held_out_seeds_are_never_trained_on() -> None:
    assert min(scenes.HELD_OUT) == 10_000_000
    assert len(scenes.HELD_OUT) == 100_000


def test_things_are_within_the_image_and_visible() -> None:
    for scene in WORLD[:300]:
        assert 2 <= len(scene.things) <= 5
        cover = scenes.cover(scene)
        assert cover.shape == (scenes.SIZE, scenes.SIZE)
        assert set(np.unique(cover)) <= {-1, *range(len(scene.things))}
        for index, thing in enumerate(scene.things):
            unobstructed = scenes.cover(scene._replace(things=(thing,))) == 0
            assert (cover == index).sum() >= 0.7 * unobstructed.sum()
            assert not unobstructed[[0, -1]].any()
            assert not unobstructed[:, [0, -1]].any()


def test_pixels_show_the_colours() -> None:
    for scene in WORLD[:40]:
        pixels, cover = scenes.draw(scene), scenes.cover(scene)
        assert pixels.shape == (scenes.SIZE, scenes.SIZE, 3)
        assert pixels.dtype == np.uint8
        for index, thing in enumerate(scene.things):
            mean_colour = pixels[cover == index].mean(0)
            if thing.texture == "plain" and thing.colour in ("red", "green", "blue"):
                assert mean_colour.argmax() == ("red", "green", "blue").index(thing.colour)
            if thing.texture == "plain" and thing.colour in ("white", "black"):
                assert (mean_colour.mean() > 190) == (thing.colour == "white")


def test_every_word_is_known() -> None:
    all_texts = {*TRUE_CAPTIONS, *(left.text for left, _ in STATEMENTS)}
    all_texts |= {text.text for text in (*QUESTIONS, *HYPOTHESES, *CAPTIONS)}
    assert {token for text in all_texts for token in tokens(text)} <= set(scenes.WORDS)
    assert len(scenes.WORDS) <= 250
    assert tuple(sorted(set(scenes.WORDS))) == scenes.WORDS
    assert max(len(text.split()) for text in all_texts) <= 18
    assert len(all_texts) > 7000
    assert not [
        text for text in all_texts if re.search(r"\{|\}|  |\ba [aeiou]|\ban [^aeiou]", text)
    ]


def test_answers_are_balanced() -> None:
    assert {text.answer for text in QUESTIONS} == set(scenes.ANSWERS)
    shares_by_family = shares(QUESTIONS)
    bounds = {"colour": 0.2, "shape": 0.25, "texture": 0.45, "size": 0.6, "count": 0.28}
    assert set(shares_by_family) == {*bounds, "existence", "comparison", "relation"}
    for family, (count, share) in shares_by_family.items():
        assert count > COUNT / 20
        assert share < bounds.get(family, 0.6)


@pytest.mark.parametrize(
    ("family_texts", "answers"),
    [
        (HYPOTHESES, scenes.LABELS),
        (CAPTIONS, ("true", "false")),
        ([left for left, _ in STATEMENTS], ("true", "false")),
    ],
    ids=["hypotheses", "captions", "statements"],
)
def test_labels_are_balanced(family_texts: list[Text], answers: tuple[str, ...]) -> None:
    counts = Counter(text.answer for text in family_texts)
    assert set(counts) == set(answers)
    assert max(counts.values()) < 1.15 * COUNT / len(answers)
    for family, (count, share) in shares(family_texts).items():
        assert family == "neutral" or count < 100 or share < 0.65, family


def test_words_alone_do_not_reveal_the_answer() -> None:
    """Check that a naive Bayes classifier over words and word pairs learns almost nothing."""
    random = np.random.default_rng(5)
    sources: dict[str, list[Text]] = {"hypothesis": [], "caption": [], "statement": []}
    for seed in range(4000):
        scene = scenes.scene(seed)
        hypothesis = scenes.hypothesis(scene, random)
        if hypothesis.answer != "neutral":
            sources["hypothesis"].append(hypothesis)
        sources["caption"].append(scenes.caption(scene, random))
        sources["statement"].append(scenes.statement(PAIRS[seed % COUNT], random)[0])
    for name, source_texts in sources.items():
        assert _bayes_accuracy(source_texts) < 0.58, name


def _bayes_accuracy(source_texts: list[Text]) -> float:
    """Train on three quarters of the texts and return the accuracy on the rest."""
    features = [{*(t := tokens(text.text)), *pairwise(t)} for text in source_texts]
    labels = np.array([text.answer in ("true", "entailment") for text in source_texts])
    cut = len(source_texts) * 3 // 4
    counts: dict[object, list[int]] = defaultdict(lambda: [1, 1])
    for feature, label in zip(features[:cut], labels[:cut], strict=True):
        for part in feature:
            counts[part][int(label)] += 1
    scores = [
        sum(np.log(counts[part][1] / counts[part][0]) for part in feature if part in counts)
        for feature in features[cut:]
    ]
    return float(((np.array(scores) > 0) == labels[cut:]).mean())


def test_counts_are_true() -> None:
    patterns = "|".join(
        (
            r"How many (.*?) (?:are there|can you see|does the image show|are in the picture|"
            r"do you see)\?",
            r"Count the (.*)\.",
            r"What is the number of (.*)\?",
            r"Tell me how many (.*) there are\.",
        )
    )
    checked = 0
    for scene, text in zip(WORLD, QUESTIONS, strict=True):
        if text.family == "count":
            match = re.fullmatch(patterns, text.text)
            assert match
            things = fitting(next(filter(None, match.groups())), scene.things)
            assert text.answer == str(len(things))
            assert text.mentions == (tuple(things),)
            checked += 1
    assert checked > 150


def test_existence_is_true() -> None:
    checked = 0
    for scene, text in zip(WORLD, QUESTIONS, strict=True):
        if text.family == "existence" and " no " not in text.text and "without" not in text.text:
            match = re.search(r"\b(?:an?|any) (.*?)(?: in the \w+)?\?$", text.text)
            assert match, text.text
            things = fitting(match[1], scene.things)
            assert text.answer == ("yes" if things else "no"), text.text
            assert text.mentions == (tuple(things),)
            checked += 1
    assert checked > 100


def test_questions_about_one_thing_are_unique_and_true() -> None:
    noun = "|".join((*scenes.SHAPES, "thing", "object"))
    for scene, text in zip(WORLD, QUESTIONS, strict=True):
        if text.family in ("colour", "shape", "texture", "size"):
            match = re.search(rf"the ((?:(?!the )[a-z]+ )*?(?:{noun}))\b", text.text)
            assert match, text.text
            (index,) = text.mentions[0]
            assert fitting(match[1].split("of the ")[-1], scene.things) == [index], text.text
            assert text.answer == getattr(scene.things[index], text.family)


@pytest.mark.parametrize("family_texts", [QUESTIONS, HYPOTHESES], ids=["questions", "hypotheses"])
def test_positions_are_true(family_texts: list[Text]) -> None:
    checked = 0
    for scene, text in zip(WORLD, family_texts, strict=True):
        if text.family == "relation" and text.answer in ("yes", "no", *scenes.LABELS):
            (first,), (second,) = text.mentions
            first_position, second_position = (
                position(scene.things[first]),
                position(scene.things[second]),
            )
            axis, sign = _direction(text.text)
            distance = sign * (first_position[axis] - second_position[axis])
            assert abs(distance) >= 12
            assert (distance > 0) == (text.answer in ("yes", "entailment")), text.text
            checked += 1
    assert checked > 80


def position(thing: Thing) -> tuple[float, float]:
    return thing.x, thing.y


def _direction(text: str) -> tuple[int, int]:
    """Return the axis that a relation is about, and the sign of its difference."""
    words = set(tokens(text))
    for names, axis, sign in (
        ({"left"}, 0, -1), ({"right"}, 0, 1),
        ({"above", "higher", "over"}, 1, -1), ({"below", "lower", "under"}, 1, 1),
    ):  # fmt: skip
        if words & names:
            return axis, sign
    raise AssertionError(text)


def test_captions_are_true_or_false() -> None:
    pattern = re.compile(r"(?:.*?\b(?:[Aa]n? (?!picture|image)))(.*)\.")
    relation = (
        r" (?:is )?(?:to the left of|on the left of|left of|further left than"
        r"|to the right of|on the right of|right of|further right than"
        r"|above|over|higher (?:up )?than|below|under|lower (?:down )?than) an? "
    )
    checked = 0
    for scene, text in zip(WORLD, CAPTIONS, strict=True):
        if text.family == "relation":
            match = pattern.match(text.text)
            assert match
            first_phrase, second_phrase = re.split(relation, match[1])
            axis, sign = _direction(text.text)
            first_matches, second_matches = (
                fitting(first_phrase, scene.things),
                fitting(second_phrase, scene.things),
            )
            assert text.mentions == (tuple(first_matches), tuple(second_matches))
            positions = [position(thing) for thing in scene.things]
            distances = [
                sign * (positions[i][axis] - positions[j][axis])
                for i in first_matches
                for j in second_matches
            ]
            assert any(d >= 12 for d in distances) == (text.answer == "true"), text.text
            checked += 1
    assert checked > 800


def test_statements_are_true_or_false() -> None:
    rules: dict[str, Callable[[int, int], bool]] = {
        "both": lambda left, right: left > 0 and right > 0,
        "one": lambda left, right: (left > 0) != (right > 0),
        "neither": lambda left, right: left + right == 0,
        "either": lambda left, right: left + right > 0,
        "equal": lambda left, right: left == right,
    }
    for pair, (left, right) in zip(PAIRS, STATEMENTS, strict=True):
        assert left[:3] == right[:3]
        counts = len(left.mentions[0]), len(right.mentions[0])
        side_counts = counts if _named_side(left.text) == "left" else counts[::-1]
        numbers = [NUMBERS[word] for word in tokens(left.text) if word in NUMBERS]
        if left.family in rules:
            truth = rules[left.family](*counts)
        elif left.family == "side":
            truth = side_counts[0] > 0
        elif left.family == "side only":
            truth = side_counts[0] > 0 and side_counts[1] == 0
        elif left.family == "side count":
            truth = numbers[0] == side_counts[0]
        elif left.family == "more":
            truth = side_counts[0] > side_counts[1]
            if "fewer" in left.text:
                truth = side_counts[0] < side_counts[1]
        else:
            continue
        assert (left.answer == "true") == truth, (left.text, pair)
    assert len({left.family for left, _ in STATEMENTS}) >= 8


def _named_side(text: str) -> str:
    return min(("left", "right"), key=lambda side: text.find(side) % 1000)


def test_totals_are_true() -> None:
    for pair, (left, right) in zip(PAIRS, STATEMENTS, strict=True):
        match = re.search(
            r"\b(" + "|".join(NUMBERS) + r") (?!images|pictures)(.*?)( in total)?\.", left.text
        )
        if left.family == "total" and match:
            counts = [len(fitting(match[2], scene.things)) for scene in pair]
            assert counts == [len(left.mentions[0]), len(right.mentions[0])]
            assert (sum(counts) == NUMBERS[match[1]]) == (left.answer == "true"), left.text


def test_true_captions_are_true() -> None:
    for scene, text in zip(WORLD, TRUE_CAPTIONS, strict=True):
        # The caption has a singular noun phrase for each of two or three things in the scene.
        phrases = re.findall(rf"\ban? ((?:[a-z]+ )*?(?:{SHAPE}))\b", text.lower())
        phrases = [
            phrase.removeprefix("picture of a ").removeprefix("picture of an ")
            for phrase in phrases
        ]
        phrase_matches = [fitting(phrase, scene.things) for phrase in phrases]
        assert 2 <= len(phrase_matches) <= 3, text
        assert all(phrase_matches), text
        if len(phrase_matches) == 3 or " and " not in text:
            axis, sign = _direction(text)
            positions = [position(thing) for thing in scene.things]
            distances = [
                sign * (positions[i][axis] - positions[j][axis])
                for i in phrase_matches[0]
                for j in phrase_matches[1]
            ]
            assert max(distances) >= 12, text


@pytest.mark.parametrize("family_texts", [QUESTIONS, HYPOTHESES], ids=["questions", "hypotheses"])
def test_comparisons_are_true(family_texts: list[Text]) -> None:
    checked: Counter[str] = Counter()
    for scene, text in zip(WORLD, family_texts, strict=True):
        words = set(tokens(text.text))
        if text.answer == "neutral" or len(text.mentions) < 2 or text.family == "relation":
            continue
        first, second = ([scene.things[index] for index in phrase] for phrase in text.mentions)
        if words & {"fewer", "less"} or ("number of" in text.text and "smaller" in words):
            rule, truth = "fewer", len(first) < len(second)
        elif words & {"more", "outnumber", "greater"}:
            rule, truth = "more", len(first) > len(second)
        elif words & {"many", "equal", "equally"}:
            rule, truth = "equal", len(first) == len(second)
        elif words & {"larger", "bigger"}:
            rule, truth = "larger", first[0].radius > second[0].radius
        elif "smaller" in words:
            rule, truth = "smaller", first[0].radius < second[0].radius
        else:
            names = words & {"shape", "colour", "size", "texture"}
            names |= {word[:-1] for word in words & {"shapes", "colours", "sizes", "textures"}}
            same = getattr(first[0], name := names.pop()) == getattr(second[0], name)
            rule, truth = "same", same == bool(words & {"same"})
        assert truth == (text.answer in ("yes", "entailment")), text.text
        checked[rule] += 1
    assert set(checked) == {"fewer", "more", "equal", "larger", "smaller", "same"}


def test_claims_about_one_kind_are_true() -> None:
    checked: Counter[str] = Counter()
    for scene, text in zip(WORLD, HYPOTHESES, strict=True):
        things = [scene.things[index] for index in text.mentions[0]]
        words = tokens(text.text)
        if text.family in ("existence", "any"):
            truth = bool(things)
        elif text.family == "absence":
            truth = not things
        elif text.family == "count":
            index = next(index for index, word in enumerate(words) if word in ("exactly", "just"))
            truth = len(things) == NUMBERS[words[index + 1]]
        elif text.family in ("attribute", "every"):
            claimed = re.split(r" (?:is|are) ", text.text)[-1].split()
            value = fitting(" ".join(claimed).rstrip("."), things)
            truth = len(value) == len(things)
        else:
            continue
        assert truth == (text.answer == "entailment"), text.text
        checked[text.family] += 1
    assert len(checked) == 6


@pytest.mark.parametrize("family_texts", [QUESTIONS, HYPOTHESES], ids=["questions", "hypotheses"])
def test_definite_phrases_are_unique(family_texts: list[Text]) -> None:
    checked = 0
    for scene, text in zip(WORLD, family_texts, strict=True):
        phrases = re.findall(
            rf"\bthe ((?:{ADJECTIVE} )*(?:{SHAPE}|thing|object))\b", text.text.lower()
        )
        indirect = text.family == "relation" and text.answer not in ("yes", "no", *scenes.LABELS)
        for index, phrase in enumerate(phrases):
            if not (indirect and index == 0):
                assert tuple(fitting(phrase, scene.things)) == text.mentions[index]
                assert len(text.mentions[index]) == 1
                checked += 1
    assert checked > COUNT / 3


def test_mentions_are_indexes_of_things() -> None:
    scenes_with_texts = [*zip(WORLD, QUESTIONS, strict=True), *zip(WORLD, HYPOTHESES, strict=True)]
    scenes_with_texts += zip(WORLD, CAPTIONS, strict=True)
    for pair, both in zip(PAIRS, STATEMENTS, strict=True):
        scenes_with_texts += zip(pair, both, strict=True)
    for scene, text in scenes_with_texts:
        assert 1 <= len(text.mentions) <= 2
        for phrase in text.mentions:
            assert len(set(phrase)) == len(phrase)
            assert set(phrase) <= set(range(len(scene.things)))


def test_pairs_have_things_in_common() -> None:
    def kinds(scene: Scene) -> set[tuple[str, ...]]:
        return {thing[:4] for thing in scene.things}

    common = sum(bool(kinds(pair.left) & kinds(pair.right)) for pair in PAIRS)
    assert 0.4 * COUNT < common < COUNT
