"""What a bench tells while it works: stages, notices, and why it cannot go on."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import Progress

Stage = Callable[[str, int], Callable[[], None]]
"""Starts a named stage of so many steps, and returns what to call after each step."""


class BenchError(ValueError):
    """Something that cannot be measured as asked; the message says why."""


def notice(text: str) -> None:
    """A line on stderr."""
    print(f"tokenfold bench: {text}", file=sys.stderr, flush=True)


@contextmanager
def progress() -> Iterator[Stage]:
    """A bar on stderr, where that is a terminal."""
    console = Console(stderr=True)
    # Drawn between slices only: a thread that redraws would disturb what is measured.
    with Progress(console=console, auto_refresh=False, disable=not console.is_terminal) as bar:

        def stage(title: str, steps: int) -> Callable[[], None]:
            task = bar.add_task(title, total=steps)
            return lambda: bar.update(task, advance=1, refresh=True)

        yield stage
