"""Batches of scenes with the texts that somebody who looks for them may type.

Batch number n of a seed is always the same, so that a run can go on where it stopped.
"""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Iterator
from itertools import combinations
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import IterableDataset

from models.demo import scenes
from models.demo.scenes.descriptions import DESCRIPTION_WORDS, description, query
from models.text import word_level

PATCH = 8
GRID = scenes.SIZE // PATCH
MOST_TEXT = 64
TEXT = word_level(DESCRIPTION_WORDS, MOST_TEXT)
# A patch shows the thing that covers at least this much of it.
_SHOWN = 0.25
_CELLS = 3
_VALUES = {
    "shape": scenes.SHAPES,
    "colour": scenes.COLOURS,
    "size": scenes.SIZES,
    "texture": scenes.TEXTURES,
    "cell": tuple(range(_CELLS * _CELLS)),
}
KINDS = tuple(1 + len(_VALUES[name]) for name in ("shape", "colour", "size", "texture"))
_PAIRS = tuple(combinations(_VALUES, 2))
FACTS = sum(len(_VALUES[one]) * len(_VALUES[other]) for one, other in _PAIRS)
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
    shown, facts = zip(*map(_seen, drawn), strict=True)
    return Batch(
        pixels(drawn), ids, size, torch.from_numpy(np.stack(shown)), torch.from_numpy(np.stack(facts))
    )


def pixels(drawn: list[scenes.Scene]) -> Tensor:
    """(B, 96, 96, 3) uint8."""
    return torch.from_numpy(np.stack([scenes.draw(scene) for scene in drawn]))


def encoded(texts: list[str]) -> tuple[Tensor, Tensor]:
    """Ids and sizes, (B, T) each, T that of the longest text."""
    rows = [TEXT.encode(text).ids for text in texts]
    longest = max(map(len, rows))
    ids, size = torch.zeros(len(rows), longest, dtype=torch.int64), torch.zeros(len(rows), longest)
    for at, row in enumerate(rows):
        ids[at, : len(row)] = torch.from_numpy(row)
        size[at, : len(row)] = 1.0
    return ids, size


def _seen(scene: scenes.Scene) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]:
    """What each patch shows, and which attributes things have together."""
    count = len(scene.things)
    at = scenes.cover(scene)[None] == np.arange(count)[:, None, None]  # (things, 96, 96)
    share = at.reshape(count, GRID, PATCH, GRID, PATCH).mean((2, 4)).reshape(count, -1)
    thing = np.where(share.max(0) >= _SHOWN, share.argmax(0), -1)  # (patches)
    indexes = [
        {
            "cell": _cell(one.y) * _CELLS + _cell(one.x),
            **{name: _VALUES[name].index(getattr(one, name)) for name in _VALUES if name != "cell"},
        }
        for one in scene.things
    ]
    kinds = [[1 + kind[name] for name in ("shape", "colour", "size", "texture")] for kind in indexes]
    # The last row is for no thing, index -1.
    shown = np.array([*kinds, (0, 0, 0, 0)], dtype=np.int64)[thing].T
    facts = []
    for one, other in _PAIRS:
        table = np.zeros((len(_VALUES[one]), len(_VALUES[other])), dtype=np.float32)
        for kind in indexes:
            table[kind[one], kind[other]] = 1.0
        facts.append(table.ravel())
    return shown, np.concatenate(facts)


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
            with io.BytesIO() as file:
                Image.fromarray(scenes.draw(scene)).save(file, "png")
                archive.writestr(name, file.getvalue())
            items.append({"task": "retrieve", "images": [name], "text": text})
        archive.writestr("items.jsonl", "".join(json.dumps(item) + "\n" for item in items))
