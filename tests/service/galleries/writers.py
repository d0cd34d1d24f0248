"""Processes that put images, for tests that end them at any moment.

Run as `python -m tests.service.galleries.writers`: it imports what it needs once, and forks for
each line on stdin, since an import takes longer than all that a process does then. Each process
tells on stdout what it is and what was acknowledged.
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
    """What a process does.

    Attributes:
        uri: of the galleries.
        first: number of the first image.
        count: images, in batches of `BATCH`.
        content: of each, told apart from what other processes put.
        upkeep: put the gallery in order after each so many batches; 0 for never.
    """

    uri: str
    first: int
    count: int
    content: str = ""
    upkeep: int = 0


def row(number: int, content: str = "") -> ImageRow:
    """An image with a thumbnail of some size."""
    made = image(f"{number:06}", content=f"{content}{number}", metadata={"by": content})
    return made._replace(thumbnail=made.thumbnail * 100)


async def put(order: Order) -> None:
    """Put all images; a line for each batch that was acknowledged."""
    gallery = await (await Galleries.open(order.uri)).get(GALLERY)
    for turn, begin in enumerate(range(order.first, order.first + order.count, BATCH), 1):
        statuses = await gallery.put([row(n, order.content) for n in range(begin, begin + BATCH)])
        say(put=begin, statuses=statuses)
        if order.upkeep and turn % order.upkeep == 0:
            with contextlib.suppress(*LanceError):  # another process was first
                await optimize(gallery)
                await index(gallery, 64)


def say(**what: Any) -> None:
    """A line, written at once: lines of several processes are not mixed."""
    os.write(1, (json.dumps(what) + "\n").encode())


def main() -> None:
    """Fork for each line."""
    import lancedb  # noqa: F401 - before the fork

    say(ready=True)
    for line in sys.stdin:
        orders = [Order(**each) for each in json.loads(line)]
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
        say(began=children)
        for child in children:
            _, status = os.waitpid(child, 0)
            say(ended=os.waitstatus_to_exitcode(status))


class Writers:
    """The parent's end."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def begin(self, *orders: Order) -> None:
        """Fork one process for each."""
        assert self._process.stdin is not None
        print(json.dumps([asdict(order) for order in orders]), file=self._process.stdin, flush=True)

    def hear(self) -> dict[str, Any]:
        """The next line."""
        assert self._process.stdout is not None
        found: dict[str, Any] = json.loads(self._process.stdout.readline())
        return found


@contextlib.contextmanager
def writers() -> Iterator[Writers]:
    """Run the process; it ends with the block."""
    line = [sys.executable, "-m", "tests.service.galleries.writers"]
    with subprocess.Popen(
        line, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            found = Writers(process)
            assert found.hear() == {"ready": True}
            yield found
        finally:
            process.kill()


if __name__ == "__main__":
    main()
