"""Processes that add images, for tests that kill them at any moment.

Run as `python -m tests.service.galleries.writers`: the process imports everything once and forks
for each line on stdin, because the imports take longer than the actual work. Each child reports its
process id and the acknowledged images on stdout.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

from tests.service.galleries.made import image
from tokenfold.service.galleries.failures import LanceError
from tokenfold.service.galleries.record import ImageRow
from tokenfold.service.galleries.store import Galleries
from tokenfold.service.galleries.upkeep import index, optimize

GALLERY = "holiday"
BATCH = 4


@dataclass(frozen=True)
class Order:
    """Task of a writer process.

    Attributes:
        uri: data directory of the galleries.
        first: number of the first image.
        count: number of images, added in batches of `BATCH`.
        content: prefix of the images' content, different for each process.
        upkeep: optimise the gallery after each `upkeep` batches; 0 for never.
    """

    uri: str
    first: int
    count: int
    content: str = ""
    upkeep: int = 0


def row(number: int, content: str = "") -> ImageRow:
    """Return an image with a thumbnail of realistic size."""
    small = image(f"{number:06}", content=f"{content}{number}", metadata={"by": content})
    return small._replace(thumbnail=small.thumbnail * 100)


async def put(order: Order) -> None:
    """Add all images; print a line for each acknowledged batch."""
    gallery = await (await Galleries.open(order.uri)).get(GALLERY)
    for turn, begin in enumerate(range(order.first, order.first + order.count, BATCH), 1):
        statuses = await gallery.put([row(n, order.content) for n in range(begin, begin + BATCH)])
        report(put=begin, statuses=statuses)
        if order.upkeep and turn % order.upkeep == 0:
            with contextlib.suppress(*LanceError):  # another process committed first
                await optimize(gallery)
                await index(gallery, 64)


def report(**fields: Any) -> None:
    """Print a line of JSON in a single write, so that lines of several processes do not mix."""
    os.write(1, (json.dumps(fields) + "\n").encode())


def main() -> None:
    """Fork a process for each order in each line of stdin."""
    import lancedb  # noqa: F401 - before the fork

    report(ready=True)
    for line in sys.stdin:
        orders = [Order(**order) for order in json.loads(line)]
        children = []
        for order in orders:
            child = os.fork()
            if not child:
                code = 1
                try:
                    asyncio.run(put(order))
                    code = 0
                finally:
                    os._exit(code)
            children.append(child)
        report(began=children)
        for child in children:
            _, status = os.waitpid(child, 0)
            report(ended=os.waitstatus_to_exitcode(status))


class Writers:
    """The parent's end of the writer processes."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def begin(self, *orders: Order) -> None:
        """Fork a process for each order."""
        assert self._process.stdin is not None
        print(json.dumps([asdict(order) for order in orders]), file=self._process.stdin, flush=True)

    def hear(self) -> dict[str, Any]:
        """Return the next reported line."""
        assert self._process.stdout is not None
        message: dict[str, Any] = json.loads(self._process.stdout.readline())
        return message


@contextlib.contextmanager
def writers() -> Iterator[Writers]:
    """Start the forking process; leaving the context ends it."""
    command = [sys.executable, "-m", "tests.service.galleries.writers"]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            client = Writers(process)
            assert client.hear() == {"ready": True}
            yield client
        finally:
            process.kill()


if __name__ == "__main__":
    main()
