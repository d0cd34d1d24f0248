"""Requests and results as plain data, so that they can cross a thread, a process or a machine."""

from __future__ import annotations

import itertools
import os
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple, TypeVar

from tokenfold.bundle.tasks import Task
from tokenfold.bundle.text import Encoded
from tokenfold.inference.backend import Sample, Shape
from tokenfold.inference.errors import InvalidRequest, RequestError
from tokenfold.inference.levels import Choice, Selector
from tokenfold.inference.work import Works

NO_SELECTOR = Selector()
"""Selects the default level."""

Stage = Literal["decode", "queue", "infer", "post"]

T = TypeVar("T")

_numbers = itertools.count(1)


class Item(NamedTuple):
    """A part of a request that is answered by itself.

    Attributes:
        images: indices of its images among the request's; none for a text by itself.
        text: index of its text among the request's; None for a task without texts.
    """

    images: tuple[int, ...]
    text: int | None = None


def _new_id() -> str:
    return f"{os.getpid():x}-{next(_numbers):x}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """A request for inference by one model.

    Attributes:
        model: name of the model.
        task: a task of the model.
        items: 1 or more. Each image and each text belongs to at least one.
        images: encoded images, as bytes or base64, perhaps as a data URL.
        texts: texts for a task that has them.
        text_field: the caller's name of the texts, for errors.
        selector: the selector of the level, or a level that is already chosen.
        slots: whether to return the final position of each token.
        arrived: time of arrival, in seconds of `time.perf_counter`, which the processes of a
            machine share.
        deadline: time by which the answer is needed, on the same clock. Another machine needs it
            converted.
        priority: requests of a higher priority run first.
        caller: identification of the caller, for logs.
        id: identification of the request, for logs.
    """

    model: str
    task: Task
    items: Sequence[Item]
    images: Sequence[bytes | str] = ()
    texts: Sequence[str] = ()
    text_field: str = "text"
    selector: Selector | Choice = NO_SELECTOR
    slots: bool = False
    arrived: float = field(default_factory=time.perf_counter)
    deadline: float = float("inf")
    priority: int = 0
    caller: str = ""
    id: str = field(default_factory=_new_id)


@dataclass(frozen=True, slots=True)
class ItemResult:
    """The outputs of an item, their cost and their timing.

    Attributes:
        output: outputs by their name in the graph.
        works: one for each image of the item, or one of its text.
        shapes: of its images.
        batch_size: items of the run that answered it, itself included.
        decode_seconds: duration of decoding its images.
        embed_seconds: duration of the runs that embedded its images, if they are shared.
        run_seconds: duration of the run that answered it.
        ended: end of that run, in seconds of `time.perf_counter`.
    """

    output: Sample
    works: Works
    shapes: Sequence[Shape]
    batch_size: int
    decode_seconds: float
    embed_seconds: float
    run_seconds: float
    ended: float


@dataclass(frozen=True, slots=True)
class Result:
    """The results of a request.

    Attributes:
        choice: the level that was used.
        items: a result for each item, in order; an error for one that failed.
        texts: the encoded texts.
    """

    choice: Choice
    items: Sequence[ItemResult | RequestError]
    texts: Sequence[Encoded] = ()


def all_succeeded(results: Iterable[T | RequestError]) -> list[T]:
    """Return results that must all have succeeded.

    Raises:
        RequestError: of the first one that failed.
    """
    succeeded = []
    for result in results:
        if isinstance(result, RequestError):
            raise result
        succeeded.append(result)
    return succeeded


def one_by_one(images: int, texts: int, *, name: str, per_item: int = 1) -> list[Item]:
    """Pair images with texts.

    N images go with N texts in order; a single image or a single text is reused for all.

    Args:
        images: number of images, 1 or more.
        texts: number of texts, 1 or more.
        name: the caller's name of the texts, for errors.
        per_item: images that each item looks at, which follow each other.

    Raises:
        InvalidRequest: the numbers do not fit.
    """
    groups, rest = divmod(images, per_item)
    if rest or not (groups == texts or 1 in (groups, texts)):
        single = "one image" if per_item == 1 else f"{per_item} images"
        equal = "as many of both" if per_item == 1 else f"{per_item} images for each {name}"
        raise InvalidRequest(
            f"The request has {images} of image and {texts} of {name}: send {equal}, or one {name} "
            f"for all images, or {single} for every {name}."
        )
    members = [tuple(range(i * per_item, (i + 1) * per_item)) for i in range(groups)]
    return [
        Item(members[i if groups > 1 else 0], i if texts > 1 else 0)
        for i in range(max(groups, texts))
    ]


def matrix(images: int, texts: int, *, max_pairs: int) -> list[Item]:
    """Pair every image with every text, row by row.

    Raises:
        InvalidRequest: there are more than `max_pairs` pairs.
    """
    if images * texts > max_pairs:
        raise InvalidRequest(
            f"{images} images with {texts} texts are {images * texts} pairs; a request may have at "
            f"most {max_pairs}."
        )
    return [Item((image,), text) for image in range(images) for text in range(texts)]
