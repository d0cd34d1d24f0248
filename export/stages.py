"""Progress of an export: named stages of several steps, and the threads of a stage."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")

Step = Callable[[], None]
"""Reports that one more step of a stage is done."""

Stage = Callable[[str, int], Step]
"""Starts a stage, given its title and number of steps."""


def no_step() -> None:
    """Report nothing."""


def no_stage(_title: str, _steps: int) -> Step:
    """Start a stage without a progress bar."""
    return no_step


class Workers(NamedTuple):
    """Threads that process the items of one stage.

    Attributes:
        threads: number of items in progress at once.
        step: called after each item.
    """

    threads: int = 1
    step: Step = no_step

    def map(self, function: Callable[[Item], Result], items: Sequence[Item]) -> list[Result]:
        """Apply a function to every item; results are in the items' order."""

        def process(item: Item) -> Result:
            result = function(item)
            self.step()
            return result

        with ThreadPoolExecutor(self.threads) as pool:
            return list(pool.map(process, items))
