"""Training batches of scenes with questions: pixels, texts, answers, and targets of the probes.

Batch n of a seed is always the same, so that a run can be resumed.
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
# A patch shows a thing that covers at least this share of it.
_MIN_COVER = 0.25
_EVALUATION_SEED = 2
_EVALUATION_BATCH = 32
_HARD = frozenset(
    {
        *("count", "comparison", "relation"),  # questions, and some of them captions
        *("equal", "more", "fewer", "larger", "smaller", "same", "different"),  # hypotheses
    }
)
_TEXT_GENERATORS = {"vqa": scenes.question, "entail": scenes.hypothesis, "match": scenes.caption}
_WORD = re.compile(r"\w+|[^\w\s]")
_IDS = {word: index for index, word in enumerate((*SPECIAL, *scenes.WORDS))}


class TaskCounts(NamedTuple):
    """Number of texts of each task in a batch."""

    vqa: int
    entail: int
    match: int
    reason: int


class PairBatch(NamedTuple):
    """S texts with one image each, then R texts with two images.

    There are N = S + 2 R images: the only or left image of each text, then the right images.

    Attributes:
        pixels: (N, 96, 96, 3) uint8.
        ids: (N, T) int64, padded.
        size: (N, T) float32, 0 for padding.
        tasks: task of each of the S + R texts.
        answers: (S + R) int64, index of the correct label.
        shown: (N, 4, patches) int64, shape, colour, size and texture in a patch, 0 for none.
        centre: (N, patches) float32, 1 for patches that contain the centre of a thing.
        mentioned: (N, 2, patches) float32, 1 for patches that show a thing that the first or second
            phrase of the text describes; -1 if the text has no such phrase.
        counts: (N, 2) int64, number of things that each phrase describes; -1 without the phrase.
        places: (N, 2, 2) int64, row and column of the only thing that a phrase describes; -1 if it
            describes none or several.
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
    """Return the ids of a text, between class token and separator."""
    words = _WORD.findall(text.lower())
    return [CLASS, *(_IDS.get(word, UNKNOWN) for word in words), SEPARATOR]


def pad(texts: Sequence[list[int]]) -> tuple[Tensor, Tensor]:
    """Pad ids to the longest text; return ids and sizes, (N, T) each."""
    longest = max(map(len, texts))
    ids = torch.full((len(texts), longest), PAD)
    size = torch.zeros(len(texts), longest)
    for row, text in enumerate(texts):
        ids[row, : len(text)] = torch.tensor(text)
        size[row, : len(text)] = 1.0
    return ids, size


def batch(
    counts: TaskCounts, seed: int, number: int, *, held_out: bool = False, harder: bool = False
) -> PairBatch:
    """Return batch `number` of a seed.

    Args:
        held_out: whether to draw held-out scenes instead of training scenes.
        harder: whether to draw a text again if it is not about numbers, places or comparisons,
            which are learnt last.
    """
    seeds = scenes.HELD_OUT if held_out else range(scenes.HELD_OUT.start)
    random = np.random.default_rng((seed, number))
    images: list[tuple[scenes.Scene, scenes.Text]] = []
    right_images: list[tuple[scenes.Scene, scenes.Text]] = []
    tasks: list[PairTask] = []
    answers: list[str] = []
    for task, count in counts._asdict().items():
        for _ in range(count):
            scene_seed = int(random.integers(seeds.start, seeds.stop))
            if task == "reason":
                pair = scenes.pair(scene_seed)
                text, right = scenes.statement(pair, random)
                images.append((pair.left, text))
                right_images.append((pair.right, right))
            else:
                scene = scenes.scene(scene_seed)
                text = _TEXT_GENERATORS[task](scene, random)
                if harder and text.family not in _HARD:
                    text = _TEXT_GENERATORS[task](scene, random)
                images.append((scene, text))
            tasks.append(task)  # type: ignore[arg-type]
            answers.append(text.answer)
    images += right_images
    ids, size = pad([encode(text.text) for _, text in images])
    targets = [_probe_targets(scene, text) for scene, text in images]
    return PairBatch(
        torch.from_numpy(np.stack([scenes.draw(scene) for scene, _ in images])),
        ids,
        size,
        tuple(tasks),
        torch.tensor(
            [LABELS[task].index(answer) for task, answer in zip(tasks, answers, strict=True)]
        ),
        *(torch.from_numpy(np.stack(parts)) for parts in zip(*targets, strict=True)),
    )


class ScenePatches(NamedTuple):
    """Content of the patches of a scene, row by row.

    Attributes:
        masks: (things, 96, 96) bool, pixels that show each thing.
        thing: (patches) int64, index of the thing that a patch shows, -1 for none.
        shown: (4, patches) int64, its shape, colour, size and texture, 0 for none.
    """

    masks: npt.NDArray[np.bool_]
    thing: npt.NDArray[np.int64]
    shown: npt.NDArray[np.int64]


def scene_patches(scene: scenes.Scene) -> ScenePatches:
    """Return the content of the patches of a scene."""
    count = len(scene.things)
    masks = scenes.cover(scene)[None] == np.arange(count)[:, None, None]
    share = masks.reshape(count, GRID, PATCH, GRID, PATCH).mean((2, 4)).reshape(count, -1)
    thing = np.where(share.max(0) >= _MIN_COVER, share.argmax(0), -1)
    attributes = [
        (
            1 + scenes.SHAPES.index(item.shape),
            1 + scenes.COLOURS.index(item.colour),
            1 + scenes.SIZES.index(item.size),
            1 + scenes.TEXTURES.index(item.texture),
        )
        for item in scene.things
    ]
    # The last row, index -1, is for patches without a thing.
    shown = np.array([*attributes, (0, 0, 0, 0)], dtype=np.int64)[thing].T
    return ScenePatches(masks, thing, shown)


def _probe_targets(scene: scenes.Scene, text: scenes.Text) -> tuple[npt.NDArray[Any], ...]:
    """Return `shown` to `places` of `PairBatch`, for one image."""
    masks, thing, shown = scene_patches(scene)
    centres = [[int(axis.mean()) // PATCH for axis in np.nonzero(mask)] for mask in masks]
    centre = np.zeros(GRID * GRID, dtype=np.float32)
    centre[[row * GRID + column for row, column in centres]] = 1.0
    mentioned = np.full((PHRASES, GRID * GRID), -1.0, dtype=np.float32)
    counts = np.full(PHRASES, -1)
    places = np.full((PHRASES, 2), -1)
    for phrase, things in enumerate(text.mentions[:PHRASES]):
        mentioned[phrase] = np.isin(thing, things)
        counts[phrase] = len(things)
        if len(things) == 1:
            places[phrase] = centres[things[0]]
    return shown, centre, mentioned, counts, places


class PairBatches(IterableDataset[PairBatch]):
    """Batches `first` to `end`, exclusive, of a seed; harder ones from number `harder` on."""

    def __init__(self, counts: TaskCounts, seed: int, first: int, end: int, harder: int) -> None:
        super().__init__()
        self._harder = harder
        self._range = range(first, end)
        self._counts, self._seed = counts, seed

    def __iter__(self) -> Iterator[PairBatch]:
        for number in self._range:
            yield batch(self._counts, self._seed, number, harder=number >= self._harder)


def evaluation(texts: int) -> Iterator[PairBatch]:
    """Yield `texts` held-out texts of each task, in batches of a single task."""
    for task in LABELS:
        for first in range(0, texts, _EVALUATION_BATCH):
            count = min(_EVALUATION_BATCH, texts - first)
            counts = TaskCounts(
                **{name: count if name == task else 0 for name in TaskCounts._fields}
            )
            yield batch(counts, _EVALUATION_SEED, first, held_out=True)


# Texts of each task that the demo network is measured on.
MEASURED: dict[PairTask, int] = {"vqa": 2000, "entail": 1000, "reason": 1000, "match": 1000}


def write_held_out(target: Path, texts: Mapping[PairTask, int] = MEASURED) -> None:
    """Write held-out scenes as images, and `items.jsonl` with their texts and answers.

    Args:
        texts: number of texts of each task.
    """
    items: list[dict[str, object]] = []
    seeds = iter(scenes.HELD_OUT)
    with zipfile.ZipFile(target, "w") as archive:

        def write(scene: scenes.Scene, name: str) -> str:
            archive.writestr(name, scenes.png(scene))
            return name

        for task, count in texts.items():
            for index in range(count):
                seed = next(seeds)
                random = np.random.default_rng(seed)
                if task == "reason":
                    pair = scenes.pair(seed)
                    text, _ = scenes.statement(pair, random)
                    names = [
                        write(image, f"{task}/{index}-{side}.png")
                        for side, image in (("left", pair.left), ("right", pair.right))
                    ]
                else:
                    scene = scenes.scene(seed)
                    text = _TEXT_GENERATORS[task](scene, random)
                    names = [write(scene, f"{task}/{index}.png")]
                answer = text.answer
                if task == "match":
                    answer = "match" if answer == "true" else "no match"
                items.append({"task": task, "images": names, "text": text.text, "answer": answer})
        archive.writestr("items.jsonl", "".join(json.dumps(item) + "\n" for item in items))
