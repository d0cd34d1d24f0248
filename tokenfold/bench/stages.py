"""Progress, notices and errors of a running bench."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import Progress

Stage = Callable[[str, int], Callable[[], None]]
"""Starts a stage of a given title and number of steps; returns a callback to call per step."""


class BenchError(ValueError):
    """The request cannot be measured; the message says why."""


def notice(text: str) -> None:
    """Print a line on stderr."""
    print(f"tokenfold bench: {text}", file=sys.stderr, flush=True)


@contextmanager
def progress() -> Iterator[Stage]:
    """Show a progress bar on stderr if it is a terminal."""
    console = Console(stderr=True)
    # Redraw between slices only: a redrawing thread would disturb the measurement.
    with Progress(console=console, auto_refresh=False, disable=not console.is_terminal) as bar:

        def stage(title: str, steps: int) -> Callable[[], None]:
            task = bar.add_task(title, total=steps)
            return lambda: bar.update(task, advance=1, refresh=True)

        yield stage
