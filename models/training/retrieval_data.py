"""Training batches for retrieval: scenes with search queries, and a gallery to measure recall.

Batch n of a seed is always the same, so that a run can be resumed.
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
from tokenfold.models.training.pair_data import pad, scene_patches
from tokenfold.scenes.descriptions import DESCRIPTION_WORDS, description, query
from tokenfold.scenes.world import Scene

MAX_TEXT = 64
TEXT = word_level(DESCRIPTION_WORDS, MAX_TEXT)
_CELLS = 3
_VALUES = {
    "shape": len(scenes.SHAPES),
    "colour": len(scenes.COLOURS),
    "size": len(scenes.SIZES),
    "texture": len(scenes.TEXTURES),
    "cell": _CELLS * _CELLS,
}
_PAIRS = tuple(combinations(_VALUES, 2))
FACTS = sum(_VALUES[first] * _VALUES[second] for first, second in _PAIRS)
"""Number of facts: pairs of values of two attributes, such as "a red star" or "large, top left"."""


class RetrievalBatch(NamedTuple):
    """B scenes with one text each.

    Attributes:
        pixels: (B, 96, 96, 3) uint8.
        ids: (B, T) int64, padded.
        size: (B, T) float32, 0 for padding.
        shown: (B, 4, patches) int64, shape, colour, size and texture in a patch, 0 for none.
        facts: (B, FACTS) float32, 1 for each pair of attribute values that a thing has.
    """

    pixels: Tensor
    ids: Tensor
    size: Tensor
    shown: Tensor
    facts: Tensor


def batch(count: int, seed: int, number: int) -> RetrievalBatch:
    """Return batch `number` of a seed, of training scenes."""
    random = np.random.default_rng((seed, number, 2))
    scene_list = [
        scenes.scene(int(scene_seed))
        for scene_seed in random.integers(scenes.HELD_OUT.start, size=count)
    ]
    ids, size = encode([query(scene, random) for scene in scene_list])
    shown = np.stack([scene_patches(scene).shown for scene in scene_list])
    facts = np.stack([_facts(scene) for scene in scene_list])
    return RetrievalBatch(
        pixels(scene_list), ids, size, torch.from_numpy(shown), torch.from_numpy(facts)
    )


def pixels(scene_list: list[Scene]) -> Tensor:
    """Draw scenes: (B, 96, 96, 3) uint8."""
    return torch.from_numpy(np.stack([scenes.draw(scene) for scene in scene_list]))


def encode(texts: list[str]) -> tuple[Tensor, Tensor]:
    """Return ids and sizes of texts, (B, T) each, padded to the longest text."""
    return pad([TEXT.encode(text).ids.tolist() for text in texts])


def _facts(scene: scenes.Scene) -> npt.NDArray[np.float32]:
    """Return the facts (FACTS) of a scene, see `RetrievalBatch`."""
    values_by_thing = [
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
    for first, second in _PAIRS:
        table = np.zeros((_VALUES[first], _VALUES[second]), dtype=np.float32)
        for values in values_by_thing:
            table[values[first], values[second]] = 1.0
        facts.append(table.ravel())
    return np.concatenate(facts)


def _cell(coordinate: float) -> int:
    """Return the row or column of a coordinate in a coarse grid over the image."""
    return int(coordinate * _CELLS / scenes.SIZE)


class RetrievalBatches(IterableDataset[RetrievalBatch]):
    """Batches `first` to `end`, exclusive, of a seed."""

    def __init__(self, count: int, seed: int, first: int, end: int) -> None:
        super().__init__()
        self._count, self._seed, self._range = count, seed, range(first, end)

    def __iter__(self) -> Iterator[RetrievalBatch]:
        for number in self._range:
            yield batch(self._count, self._seed, number)


class Gallery(NamedTuple):
    """Held-out scenes with a description of each."""

    scenes: list[Scene]
    texts: list[str]


def held_out(count: int, first: int = 0) -> Gallery:
    """Return `count` held-out scenes from number `first` on."""
    scene_list = [scenes.scene(scenes.HELD_OUT[first + index]) for index in range(count)]
    return Gallery(
        scene_list,
        [description(scene, np.random.default_rng((scene.seed, 3))) for scene in scene_list],
    )


def write_held_out(target: Path, gallery: Gallery) -> None:
    """Write the scenes as images, and `items.jsonl` with their descriptions."""
    items = []
    with zipfile.ZipFile(target, "w") as archive:
        for index, (scene, text) in enumerate(zip(*gallery, strict=True)):
            name = f"{index:05}.png"
            archive.writestr(name, scenes.png(scene))
            items.append({"task": "retrieve", "images": [name], "text": text})
        archive.writestr("items.jsonl", "".join(json.dumps(item) + "\n" for item in items))
