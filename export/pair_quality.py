"""Measured accuracy of each level and task, on images with texts whose answers are known.

They come as a folder or zip with an `items.jsonl`, see `tokenfold.export.items`, beside the images:

    {"task": "vqa", "images": ["a.png"], "text": "What is red?", "answer": "the circle"}
    {"task": "reason", "images": ["l.png", "r.png"], "text": "Both are red.", "answer": "true"}

Without that file the levels' agreement with the unreduced network is measured, on every image with
a few texts that fit any.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np

from tokenfold.bundle.manifest import Manifest
from tokenfold.bundle.pair_workload import PairWorkload
from tokenfold.bundle.profile import Metric, Quality
from tokenfold.bundle.tasks import PairTask, Task
from tokenfold.bundle.text import EmptyTextError, TextEncoder
from tokenfold.export.items import Line, read_items
from tokenfold.export.quality import DataError, Photos, quality
from tokenfold.models.networks.pair import images as images_of
from tokenfold.runtime.pair import Float, PairRunner, ask

GENERIC: dict[PairTask, tuple[str, ...]] = {
    "vqa": ("What is this?", "What colour is it?", "How many are there?", "Is it outside?"),
    "entail": ("There is somebody in the picture.", "Nothing is red.", "It is outside."),
    "reason": ("Both pictures show the same.", "There is more on the left than on the right."),
    "match": ("a picture of an animal", "somebody outside", "something red"),
}
"""Texts for images that come without any."""


class Item(NamedTuple):
    """A text with the images that it is about.

    Attributes:
        images: their numbers among the photos; two to reason about.
        answer: index of the right label; None where it is not known.
    """

    task: PairTask
    images: tuple[int, ...]
    text: str
    answer: int | None


class Items:
    """What to ask, and of which images.

    Attributes:
        photos: the images, by number.
        items: in the file's order.
        metric: `accuracy`, or `agreement` where no answers are known.
    """

    def __init__(self, source: Path, labels: Mapping[PairTask, tuple[str, ...]]) -> None:
        """List the images, and read what is to be asked.

        Args:
            labels: of the network's tasks; other tasks in the file are left out, and so are those
                whose head ranks, for its answers have no labels.

        Raises:
            DataError: a line is no item, its image is not there, or nothing is to be asked.
        """
        self.photos = Photos(source, ())
        tasks = {task: own for task, own in labels.items() if len(own) > 1}
        told = read_items(self.photos, {task: images_of(task) for task in tasks})
        self.metric: Metric = "agreement" if told is None else "accuracy"
        self.items = self._generic(tasks) if told is None else list(_answered(told, tasks))
        if not self.items:
            raise DataError(f"{source}: nothing in it is for {', '.join(labels)}")

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
    places = {task: {label: at for at, label in enumerate(own)} for task, own in tasks.items()}
    for line in lines:
        assert line.task != "retrieve"
        if line.answer is None:
            raise DataError(f"{line.where}: there is no answer")
        answer = places[line.task].get(line.answer)
        # What people answer may be outside a network's vocabulary: it is never right then.
        if answer is None and line.task != "vqa":
            known = ", ".join(tasks[line.task])
            raise DataError(f"{line.where}: the answer {line.answer!r} is none of {known}")
        yield Item(line.task, line.images, line.text, -1 if answer is None else answer)


def measure(
    manifest: Manifest,
    session: PairRunner,
    items: Items,
    text: TextEncoder,
    *,
    unreduced: PairRunner,
    threads: int,
    progress: Callable[[], None] = lambda: None,
) -> dict[str, dict[Task, Quality]]:
    """The share of right answers of each level and task.

    Args:
        unreduced: the network in PyTorch, for items whose answer is not known.
        threads: that decode and run side by side.
        progress: called after each item.
    """
    workload = manifest.workload
    assert isinstance(workload, PairWorkload)

    def right(item: Item) -> list[bool]:
        pixels = [items.photos.pixels(at, manifest.preprocess)[None] for at in item.images]
        try:
            ids = text.encode(item.text).ids[None]
        except EmptyTextError as error:
            raise DataError(f"{items.photos.source}: {error}") from error
        size = np.ones(ids.shape, dtype=np.float32)

        def answer(network: PairRunner, images: list[Float], plans: list[tuple[int, ...]]) -> int:
            logits = ask(network, images, ids, size, plans, task=item.task)[-1].logits
            assert logits is not None
            return int(logits[0].argmax())

        images = [session.embed(one) for one in pixels]
        wanted = item.answer
        if wanted is None:
            own = [unreduced.embed(one) for one in pixels]
            nothing = [workload.unreduced for _ in own]
            wanted = answer(unreduced, own, nothing)
        hits = [
            answer(
                session,
                images,
                [manifest.plan(level, text=ids.shape[1], image=one.shape[1]) for one in images],
            )
            == wanted
            for level in manifest.levels.values()
        ]
        progress()
        return hits

    with ThreadPoolExecutor(threads) as pool:
        hits = list(pool.map(right, items.items))
    by_task: dict[Task, list[list[bool]]] = defaultdict(list)
    for item, row in zip(items.items, hits, strict=True):
        by_task[item.task].append(row)
    return {
        name: {
            task: quality(sum(row[at] for row in rows), len(rows), metric=items.metric)
            for task, rows in by_task.items()
        }
        for at, name in enumerate(manifest.levels)
    }
