"""Quality of an image-text network: accuracy on images with texts whose answers are known.

The images come as a folder or zip file with an `items.jsonl`, see `tokenfold.export.quality.items`:

    {"task": "vqa", "images": ["a.png"], "text": "What is red?", "answer": "the circle"}
    {"task": "reason", "images": ["l.png", "r.png"], "text": "Both are red.", "answer": "true"}

Without that file, agreement with the unreduced network is measured, on every image with a few
generic texts.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from tokenfold.bundle.manifest import Manifest
from tokenfold.bundle.pair_workload import PairWorkload
from tokenfold.bundle.profile import LevelProfile, Metric
from tokenfold.bundle.tasks import PairTask, Task
from tokenfold.bundle.text import TextEncoder
from tokenfold.export.quality.items import Line, read_items
from tokenfold.export.quality.measuring import encode, quality
from tokenfold.export.quality.photos import DataError, Photos
from tokenfold.export.stages import Workers
from tokenfold.models.networks.pair import images as images_of
from tokenfold.runtime.pair import Float, PairRunner, ask

GENERIC: dict[PairTask, tuple[str, ...]] = {
    "vqa": ("What is this?", "What colour is it?", "How many are there?", "Is it outside?"),
    "entail": ("There is somebody in the picture.", "Nothing is red.", "It is outside."),
    "reason": ("Both pictures show the same.", "There is more on the left than on the right."),
    "match": ("a picture of an animal", "somebody outside", "something red"),
}
"""Texts that fit any image, for images without an `items.jsonl`."""


class Item(NamedTuple):
    """A text with the image or images that it is about.

    Attributes:
        images: numbers of the images among the photos; two for `reason`.
        answer: index of the right label, -1 for an answer outside the vocabulary; None where the
            answer is not known.
    """

    task: PairTask
    images: tuple[int, ...]
    text: str
    answer: int | None


class Items:
    """Questions and their images.

    Attributes:
        photos: the images, by number.
        items: in the file's order.
        metric: `accuracy`, or `agreement` where no answers are known.
    """

    def __init__(self, source: Path, labels: Mapping[PairTask, tuple[str, ...]]) -> None:
        """List the images and read the items.

        Args:
            labels: labels of the network's tasks. Items of other tasks are left out, and items of
                tasks with a ranking head, whose answers have no labels.

        Raises:
            DataError: a line is not an item, its image is missing, or no item is left.
        """
        self.photos = Photos(source, ())
        tasks = {task: names for task, names in labels.items() if len(names) > 1}
        lines = read_items(self.photos, {task: images_of(task) for task in tasks})
        self.metric: Metric = "agreement" if lines is None else "accuracy"
        self.items = self._generic(tasks) if lines is None else list(_answered(lines, tasks))
        if not self.items:
            raise DataError(f"{source}: it has no item of the tasks {', '.join(labels)}")

    def __len__(self) -> int:
        return len(self.items)

    def _generic(self, tasks: Mapping[PairTask, tuple[str, ...]]) -> list[Item]:
        count = len(self.photos)
        return [
            Item(task, tuple((at + step) % count for step in range(images_of(task))), text, None)
            for task in tasks
            for at in range(count)
            for text in GENERIC[task]
        ]


def _answered(lines: Iterable[Line], tasks: Mapping[PairTask, tuple[str, ...]]) -> Iterator[Item]:
    indices = {task: {label: at for at, label in enumerate(names)} for task, names in tasks.items()}
    for line in lines:
        assert line.task != "retrieve"
        if line.answer is None:
            raise DataError(f"{line.location}: the answer is missing")
        answer = indices[line.task].get(line.answer)
        # A person's answer may be outside the network's vocabulary; the network is wrong then.
        if answer is None and line.task != "vqa":
            allowed = ", ".join(tasks[line.task])
            raise DataError(f"{line.location}: the answer {line.answer!r} is not among {allowed}")
        yield Item(line.task, line.images, line.text, -1 if answer is None else answer)


def measure(
    manifest: Manifest,
    session: PairRunner,
    items: Items,
    text: TextEncoder,
    *,
    unreduced: PairRunner,
    workers: Workers,
) -> dict[str, LevelProfile]:
    """Return the share of right answers of each level and task.

    Args:
        unreduced: the network in PyTorch, for items whose answer is not known.

    Raises:
        DataError: an image or a text cannot be read.
    """
    workload = manifest.workload
    assert isinstance(workload, PairWorkload)

    def evaluate(item: Item) -> list[bool]:
        """Return, by level, whether its answer to an item is right."""
        pixels = [items.photos.pixels(at, manifest.preprocess)[None] for at in item.images]
        ids, size = encode(text, item.text, str(items.photos.source))

        def answer(network: PairRunner, images: list[Float], plans: list[tuple[int, ...]]) -> int:
            logits = ask(network, images, ids, size, plans, task=item.task)[-1].logits
            assert logits is not None
            return int(logits[0].argmax())

        right = item.answer
        if right is None:
            images = [unreduced.embed(image) for image in pixels]
            right = answer(unreduced, images, [workload.unreduced] * len(images))
        images = [session.embed(image) for image in pixels]
        hits = []
        for level in manifest.levels.values():
            plans = [
                manifest.plan(level, text=ids.shape[1], image=tokens.shape[1]) for tokens in images
            ]
            hits.append(answer(session, images, plans) == right)
        return hits

    by_task: dict[Task, list[list[bool]]] = defaultdict(list)
    for item, hits in zip(items.items, workers.map(evaluate, items.items), strict=True):
        by_task[item.task].append(hits)
    return {
        name: LevelProfile(
            quality={
                task: quality(sum(hits[at] for hits in rows), len(rows), metric=items.metric)
                for task, rows in by_task.items()
            }
        )
        for at, name in enumerate(manifest.levels)
    }
