"""Batches of the world of scenes: pixels, texts, answers, and where in the image they look.

Batch number n of a seed is always the same, so that a run can go on where it stopped.
"""

from __future__ import annotations

import json
import re
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import IterableDataset

from tokenfold import scenes
from tokenfold.bundle.tasks import PairTask

PATCH = 8
GRID = scenes.SIZE // PATCH
PAD, UNKNOWN, CLASS, SEPARATOR = range(4)
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]")
PHRASES = 2
LABELS: dict[PairTask, tuple[str, ...]] = {
    "vqa": scenes.ANSWERS,
    "entail": scenes.LABELS,
    "reason": ("false", "true"),
    "match": ("false", "true"),
}
# A patch shows the thing that covers at least this much of it.
_SHOWN = 0.25
_EVALUATION = 2
_HARD = frozenset(
    {
        *("count", "comparison", "relation"),  # questions, and some of them captions
        *("equal", "more", "fewer", "larger", "smaller", "same", "different"),  # hypotheses
    }
)
_DRAWN = {"vqa": scenes.question, "entail": scenes.hypothesis, "match": scenes.caption}
_WORD = re.compile(r"\w+|[^\w\s]")
_IDS = {word: index for index, word in enumerate((*SPECIAL, *scenes.WORDS))}


class Mix(NamedTuple):
    """Texts of each task in a batch."""

    vqa: int
    entail: int
    match: int
    reason: int


class Batch(NamedTuple):
    """S texts with one image each, then R texts with a pair; N = S + 2 R images, left ones first.

    Attributes:
        pixels: (N, 96, 96, 3) uint8.
        ids: (N, T) int64, padded; size: (N, T) float32, 0 for padding.
        tasks: of the S + R texts.
        answers: (S + R) int64, index of the right label.
        shown: (N, 4, patches) int64, shape, colour, size and texture in a patch, 0 for none.
        centre: (N, patches) float32, 1 where the middle of a thing is.
        mentioned: (N, 2, patches) float32, 1 where a thing is that the first or second phrase of
            the text describes; -1 where the text has no such phrase.
        counts: (N, 2) int64, things that each phrase describes; -1 for no such phrase.
        places: (N, 2, 2) int64, row and column of the one thing that a phrase describes; -1 where
            there are none or several.
    """

    pixels: Tensor
    ids: Tensor
    size: Tensor
    tasks: tuple[PairTask, ...]
    answers: Tensor
    shown: Tensor
    centre: Tensor
    mentioned: Tensor
    counts: Tensor
    places: Tensor


def encode(text: str) -> list[int]:
    """Ids of a text, between class token and separator."""
    words = _WORD.findall(text.lower())
    return [CLASS, *(_IDS.get(word, UNKNOWN) for word in words), SEPARATOR]


def padded(texts: Sequence[list[int]]) -> tuple[Tensor, Tensor]:
    """Ids and sizes, (N, T) each, T that of the longest text."""
    longest = max(map(len, texts))
    ids = torch.full((len(texts), longest), PAD)
    size = torch.zeros(len(texts), longest)
    for row, text in enumerate(texts):
        ids[row, : len(text)] = torch.tensor(text)
        size[row, : len(text)] = 1.0
    return ids, size


def batch(
    mix: Mix, seed: int, number: int, *, held_out: bool = False, harder: bool = False
) -> Batch:
    """Batch `number` of a seed, of scenes to train on, or of those held out.

    Args:
        harder: whether to draw every text twice, and take the second where the first is not about
            numbers, places or comparisons, which are learnt last.
    """
    seeds = scenes.HELD_OUT if held_out else range(scenes.HELD_OUT.start)
    random = np.random.default_rng((seed, number))
    images: list[tuple[scenes.Scene, scenes.Text]] = []
    rights: list[tuple[scenes.Scene, scenes.Text]] = []
    tasks: list[PairTask] = []
    answers: list[str] = []
    for task, count in mix._asdict().items():
        for _ in range(count):
            of = int(random.integers(seeds.start, seeds.stop))
            if task == "reason":
                pair = scenes.pair(of)
                text, right = scenes.statement(pair, random)
                images.append((pair.left, text))
                rights.append((pair.right, right))
            else:
                scene = scenes.scene(of)
                text = _DRAWN[task](scene, random)
                if harder and text.family not in _HARD:
                    text = _DRAWN[task](scene, random)
                images.append((scene, text))
            tasks.append(task)  # type: ignore[arg-type]
            answers.append(text.answer)
    images += rights
    ids, size = padded([encode(text.text) for _, text in images])
    seen = [_seen(scene, text) for scene, text in images]
    return Batch(
        torch.from_numpy(np.stack([scenes.draw(scene) for scene, _ in images])),
        ids,
        size,
        tuple(tasks),
        torch.tensor(
            [LABELS[task].index(answer) for task, answer in zip(tasks, answers, strict=True)]
        ),
        *(torch.from_numpy(np.stack(parts)) for parts in zip(*seen, strict=True)),
    )


class Patches(NamedTuple):
    """What there is to see in a scene.

    Attributes:
        at: (things, 96, 96) bool, the pixels that show each thing.
        thing: (patches) int64, the thing that a patch shows, -1 for none.
        shown: (4, patches) int64: its shape, colour, size and texture, 0 for none.
    """

    at: npt.NDArray[np.bool_]
    thing: npt.NDArray[np.int64]
    shown: npt.NDArray[np.int64]


def patches(scene: scenes.Scene) -> Patches:
    """Patch by patch, row by row."""
    count = len(scene.things)
    at = scenes.cover(scene)[None] == np.arange(count)[:, None, None]
    share = at.reshape(count, GRID, PATCH, GRID, PATCH).mean((2, 4)).reshape(count, -1)
    thing = np.where(share.max(0) >= _SHOWN, share.argmax(0), -1)
    kinds = [
        (
            1 + scenes.SHAPES.index(one.shape),
            1 + scenes.COLOURS.index(one.colour),
            1 + scenes.SIZES.index(one.size),
            1 + scenes.TEXTURES.index(one.texture),
        )
        for one in scene.things
    ]
    # The last row is for no thing, index -1.
    shown = np.array([*kinds, (0, 0, 0, 0)], dtype=np.int64)[thing].T
    return Patches(at, thing, shown)


def _seen(scene: scenes.Scene, text: scenes.Text) -> tuple[npt.NDArray[Any], ...]:
    """What each patch shows, where the things' middles are, and what the text mentions."""
    at, thing, shown = patches(scene)
    middles = [[int(axis.mean()) // PATCH for axis in np.nonzero(mask)] for mask in at]
    centre = np.zeros(GRID * GRID, dtype=np.float32)
    centre[[row * GRID + column for row, column in middles]] = 1.0
    mentioned = np.full((PHRASES, GRID * GRID), -1.0, dtype=np.float32)
    counts = np.full(PHRASES, -1)
    places = np.full((PHRASES, 2), -1)
    for phrase, things in enumerate(text.mentions[:PHRASES]):
        mentioned[phrase] = np.isin(thing, things)
        counts[phrase] = len(things)
        if len(things) == 1:
            places[phrase] = middles[things[0]]
    return shown, centre, mentioned, counts, places


class Batches(IterableDataset[Batch]):
    """Batches from one number up to another, harder ones from a third."""

    def __init__(self, mix: Mix, seed: int, first: int, end: int, harder: int) -> None:
        super().__init__()
        self._harder = harder
        self._range = range(first, end)
        self._mix, self._seed = mix, seed

    def __iter__(self) -> Iterator[Batch]:
        for number in self._range:
            yield batch(self._mix, self._seed, number, harder=number >= self._harder)


def evaluation(texts: int) -> Iterator[Batch]:
    """About so many held-out texts of each task, in batches of one task."""
    most = 32
    for task in LABELS:
        for first in range(0, texts, most):
            count = min(most, texts - first)
            mix = Mix(**{name: count if name == task else 0 for name in Mix._fields})
            yield batch(mix, _EVALUATION, first, held_out=True)


# Texts of each task that the shipped network is measured on.
MEASURED: dict[PairTask, int] = {"vqa": 2000, "entail": 1000, "reason": 1000, "match": 1000}


def write_held_out(target: Path, texts: Mapping[PairTask, int] = MEASURED) -> None:
    """Write held-out scenes as images, and `items.jsonl` with what is asked of each.

    Args:
        texts: how many of each task.
    """
    items: list[dict[str, object]] = []
    seeds = iter(scenes.HELD_OUT)
    with zipfile.ZipFile(target, "w") as archive:

        def keep(scene: scenes.Scene, name: str) -> str:
            archive.writestr(name, scenes.png(scene))
            return name

        for task, count in texts.items():
            for at in range(count):
                seed = next(seeds)
                random = np.random.default_rng(seed)
                if task == "reason":
                    pair = scenes.pair(seed)
                    text, _ = scenes.statement(pair, random)
                    names = [
                        keep(one, f"{task}/{at}-{side}.png")
                        for side, one in (("left", pair.left), ("right", pair.right))
                    ]
                else:
                    scene = scenes.scene(seed)
                    text = _DRAWN[task](scene, random)
                    names = [keep(scene, f"{task}/{at}.png")]
                answer = text.answer
                if task == "match":
                    answer = "match" if answer == "true" else "no match"
                items.append({"task": task, "images": names, "text": text.text, "answer": answer})
        archive.writestr("items.jsonl", "".join(json.dumps(item) + "\n" for item in items))
