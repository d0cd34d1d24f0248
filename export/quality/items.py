"""Items to measure on: the file `items.jsonl` beside the images has one JSON object per line.

    {"task": "vqa", "images": ["a.png"], "text": "What is red?", "answer": "the circle"}
    {"task": "retrieve", "images": ["a.png"], "text": "a red circle left of a square"}

Each network uses the lines of its own tasks. The answer to `retrieve` is the image itself.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import PurePosixPath
from typing import Literal, NamedTuple, TypeAlias

from pydantic import BaseModel, ConfigDict, ValidationError

from tokenfold.bundle.tasks import PairTask
from tokenfold.export.quality.photos import DataError, Photos

ITEMS = "items.jsonl"

ItemTask: TypeAlias = PairTask | Literal["retrieve"]


class Line(NamedTuple):
    """One line of the file.

    Attributes:
        location: file name and line number, for error messages.
        images: numbers of the images among the photos.
        answer: the right answer; None for a line without one.
    """

    location: str
    task: ItemTask
    images: tuple[int, ...]
    text: str
    answer: str | None


class _Fields(BaseModel):
    """JSON object of a line; other keys are ignored."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    task: ItemTask
    images: tuple[str, ...]
    text: str
    answer: str | None = None


def read_items(photos: Photos, tasks: Mapping[ItemTask, int]) -> list[Line] | None:
    """Return the lines of some tasks, in order; None without such a file.

    Args:
        tasks: number of images of an item, by task; lines of other tasks are left out.

    Raises:
        DataError: a line is not an item, or its image is missing; the message names the line.
    """
    file = photos.text(ITEMS)
    if file is None:
        return None
    path, content = file
    return list(_lines(photos, path, content, tasks))


def _lines(
    photos: Photos, path: str, content: str, tasks: Mapping[ItemTask, int]
) -> Iterator[Line]:
    numbers = {name: at for at, name in enumerate(photos.names)}
    for at, line in enumerate(content.splitlines(), 1):
        location = f"{photos.source}: {path}, line {at}"
        if not line.strip():
            continue
        try:
            fields = _Fields.model_validate_json(line)
        except ValidationError as error:
            raise DataError(f"{location}: {error.errors()[0]['msg']}") from error
        if fields.task not in tasks:
            continue
        count = tasks[fields.task]
        if len(fields.images) != count:
            raise DataError(
                f"{location}: {fields.task} needs {count} image(s), not {len(fields.images)}"
            )
        if not fields.text.strip():
            raise DataError(f"{location}: the text is empty")
        names = [(PurePosixPath(path).parent / image).as_posix() for image in fields.images]
        missing = [name for name in names if name not in numbers]
        if missing:
            raise DataError(f"{location}: {missing[0]} is missing")
        images = tuple(numbers[name] for name in names)
        yield Line(location, fields.task, images, fields.text, fields.answer)
