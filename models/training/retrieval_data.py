"""Batches of scenes with the texts that somebody who looks for them may type.

Batch number n of a seed is always the same, so that a run can go on where it stopped.
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Iterator
from itertools import combinations
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import IterableDataset

from tokenfold import scenes
from tokenfold.bundle.text import word_level
from tokenfold.models.training.scenes_data import padded, patches
from tokenfold.scenes.descriptions import DESCRIPTION_WORDS, description, query

MOST_TEXT = 64
TEXT = word_level(DESCRIPTION_WORDS, MOST_TEXT)
_CELLS = 3
_VALUES = {
    "shape": len(scenes.SHAPES),
    "colour": len(scenes.COLOURS),
    "size": len(scenes.SIZES),
    "texture": len(scenes.TEXTURES),
    "cell": _CELLS * _CELLS,
}
_PAIRS = tuple(combinations(_VALUES, 2))
FACTS = sum(_VALUES[one] * _VALUES[other] for one, other in _PAIRS)
"""Such as "a red star" or "something large at the top left": one for each two attributes."""


class Batch(NamedTuple):
    """B scenes with a text each.

    Attributes:
        pixels: (B, 96, 96, 3) uint8.
        ids: (B, T) int64, padded; size: (B, T) float32, 0 for padding.
        shown: (B, 4, patches) int64: shape, colour, size and texture in a patch, 0 for none.
        facts: (B, FACTS) float32, 1 for each two attributes that a thing has together.
    """

    pixels: Tensor
    ids: Tensor
    size: Tensor
    shown: Tensor
    facts: Tensor


def batch(count: int, seed: int, number: int) -> Batch:
    """Batch `number` of a seed, of scenes to train on."""
    random = np.random.default_rng((seed, number, 2))
    drawn = [scenes.scene(int(of)) for of in random.integers(scenes.HELD_OUT.start, size=count)]
    ids, size = encoded([query(scene, random) for scene in drawn])
    shown = np.stack([patches(scene).shown for scene in drawn])
    facts = np.stack([_facts(scene) for scene in drawn])
    return Batch(pixels(drawn), ids, size, torch.from_numpy(shown), torch.from_numpy(facts))


def pixels(drawn: list[scenes.Scene]) -> Tensor:
    """(B, 96, 96, 3) uint8."""
    return torch.from_numpy(np.stack([scenes.draw(scene) for scene in drawn]))


def encoded(texts: list[str]) -> tuple[Tensor, Tensor]:
    """Ids and sizes, (B, T) each, T that of the longest text."""
    return padded([TEXT.encode(text).ids.tolist() for text in texts])


def _facts(scene: scenes.Scene) -> npt.NDArray[np.float32]:
    """(FACTS): which attributes things have together."""
    kinds = [
        {
            "cell": _cell(thing.y) * _CELLS + _cell(thing.x),
            "shape": scenes.SHAPES.index(thing.shape),
            "colour": scenes.COLOURS.index(thing.colour),
            "size": scenes.SIZES.index(thing.size),
            "texture": scenes.TEXTURES.index(thing.texture),
        }
        for thing in scene.things
    ]
    facts = []
    for one, other in _PAIRS:
        table = np.zeros((_VALUES[one], _VALUES[other]), dtype=np.float32)
        for kind in kinds:
            table[kind[one], kind[other]] = 1.0
        facts.append(table.ravel())
    return np.concatenate(facts)


def _cell(at: float) -> int:
    return int(at * _CELLS / scenes.SIZE)


class Batches(IterableDataset[Batch]):
    """Batches from one number up to another."""

    def __init__(self, count: int, seed: int, first: int, end: int) -> None:
        super().__init__()
        self._count, self._seed, self._range = count, seed, range(first, end)

    def __iter__(self) -> Iterator[Batch]:
        for number in self._range:
            yield batch(self._count, self._seed, number)


class Gallery(NamedTuple):
    """Scenes held out, with a description of each."""

    drawn: list[scenes.Scene]
    texts: list[str]


def held_out(count: int, first: int = 0) -> Gallery:
    """So many of the held-out scenes, from one on."""
    drawn = [scenes.scene(scenes.HELD_OUT[first + at]) for at in range(count)]
    return Gallery(
        drawn, [description(scene, np.random.default_rng((scene.seed, 3))) for scene in drawn]
    )


def write_held_out(target: Path, gallery: Gallery) -> None:
    """Write the scenes as images, and `items.jsonl` with what describes each."""
    items = []
    with zipfile.ZipFile(target, "w") as archive:
        for at, (scene, text) in enumerate(zip(*gallery, strict=True)):
            name = f"{at:05}.png"
            archive.writestr(name, scenes.png(scene))
            items.append({"task": "retrieve", "images": [name], "text": text})
        archive.writestr("items.jsonl", "".join(json.dumps(item) + "\n" for item in items))
