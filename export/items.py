"""Texts to measure on: an `items.jsonl` beside the images, one object a line.

    {"task": "vqa", "images": ["a.png"], "text": "What is red?", "answer": "the circle"}
    {"task": "retrieve", "images": ["a.png"], "text": "a red circle left of a square"}

A network takes the lines of its own tasks; the answer to `retrieve` is the image itself.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import PurePosixPath
from typing import Literal, NamedTuple, TypeAlias

from pydantic import BaseModel, ConfigDict, ValidationError

from tokenfold.bundle.tasks import PairTask
from tokenfold.export.quality import DataError, Photos

ITEMS = "items.jsonl"

AskedTask: TypeAlias = PairTask | Literal["retrieve"]


class Line(NamedTuple):
    """What one line says.

    Attributes:
        where: of what file and line it is, for messages.
        images: their numbers among the photos.
        answer: None where there is none.
    """

    where: str
    task: AskedTask
    images: tuple[int, ...]
    text: str
    answer: str | None


class _Written(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True)

    task: AskedTask
    images: tuple[str, ...]
    text: str
    answer: str | None = None


def read_items(photos: Photos, tasks: Mapping[AskedTask, int]) -> list[Line] | None:
    """The lines for some tasks, in order; None where there is no such file.

    Args:
        tasks: how many images each looks at; lines for others are left out.

    Raises:
        DataError: a line is no item, or its image is not there; it names the line.
    """
    told = photos.text(ITEMS)
    if told is None:
        return None
    return list(_lines(photos, *told, tasks))


def _lines(
    photos: Photos, name: str, content: str, tasks: Mapping[AskedTask, int]
) -> Iterator[Line]:
    numbers = {photo: at for at, photo in enumerate(photos.names)}
    for at, line in enumerate(content.splitlines(), 1):
        where = f"{photos.source}: {name}, line {at}"
        if not line.strip():
            continue
        try:
            written = _Written.model_validate_json(line)
        except ValidationError as error:
            raise DataError(f"{where}: {error.errors()[0]['msg']}") from error
        if written.task not in tasks:
            continue
        needed = tasks[written.task]
        if len(written.images) != needed:
            raise DataError(f"{where}: {needed} images are needed, not {len(written.images)}")
        if not written.text.strip():
            raise DataError(f"{where}: the text is empty")
        paths = [(PurePosixPath(name).parent / image).as_posix() for image in written.images]
        missing = [path for path in paths if path not in numbers]
        if missing:
            raise DataError(f"{where}: {missing[0]} is not there")
        seen = tuple(numbers[path] for path in paths)
        yield Line(where, written.task, seen, written.text, written.answer)
