"""A bundle's model: its levels, its tokenizer, and the geometry of its tokens."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable
from functools import cached_property

from tokenfold.bundle.bundle import Bundle, BundleError
from tokenfold.bundle.manifest import GRAPHS
from tokenfold.bundle.meter_workload import MeterWorkload
from tokenfold.bundle.tasks import Task
from tokenfold.bundle.text import EmptyTextError, TextEncoder
from tokenfold.bundle.workload import ImageWorkload
from tokenfold.inference.backend import Shape
from tokenfold.inference.levels import Levels
from tokenfold.inference.work import Works


class Model:
    """A bundle's model, without the `Backend` that runs it.

    Attributes:
        bundle: the bundle.
        manifest: its manifest.
        name: its name.
        tasks: labels of each of its tasks.
        levels: its levels.
    """

    def __init__(
        self,
        bundle: Bundle,
        *,
        default_level: str | None = None,
        seconds: Callable[[Works], float] | None = None,
    ) -> None:
        """Describe a bundle's model.

        Args:
            bundle: the bundle.
            default_level: level for a request that selects none; by default the manifest's.
            seconds: expected duration of a run; see `Levels`.

        Raises:
            UnknownLevel: the model has no such default level.
        """
        self.bundle = bundle
        self.manifest = bundle.manifest
        self.name = bundle.manifest.name
        self.tasks = bundle.manifest.tasks
        self.levels = Levels(
            bundle.manifest, bundle.profile, default=default_level, seconds=seconds
        )
        self._text: TextEncoder | None = None

    def open_text(self) -> None:
        """Load the tokenizer, if the model takes texts.

        Raises:
            BundleError: the tokenizer cannot be read.
        """
        text = self.manifest.text
        if text is None:
            return
        try:
            self._text = TextEncoder.open(self.bundle.tokenizer, text.most_tokens, text.padding)
        except ValueError as error:
            raise BundleError(str(error)) from error
        with contextlib.suppress(EmptyTextError):
            self._text.encode("What is it?")  # the first text takes a hundred times as long

    @property
    def text(self) -> TextEncoder:
        """The text encoder."""
        if self._text is None:
            raise RuntimeError(f"{self.name} takes no texts, or its tokenizer is not loaded")
        return self._text

    @cached_property
    def weights(self) -> int:
        """Bytes of the graphs with their weights."""
        files = self.manifest.files
        return sum(files[name].bytes for name in GRAPHS[self.manifest.kind])

    def labels(self, task: Task) -> tuple[str, ...]:
        """Return a task's labels in the order of the logits; none for a single ranking logit."""
        return self.tasks[task]

    @property
    def protected(self) -> int:
        """Leading tokens of an image that are no patches."""
        workload = self.manifest.workload
        return workload.protected if isinstance(workload, ImageWorkload) else 1

    @cached_property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of the patches of an image of the nominal size."""
        workload = self.manifest.workload
        nominal = self.levels.nominal
        image = workload.tokens if nominal is None else nominal.image
        if isinstance(workload, MeterWorkload):
            image = workload.vision_widths[0]  # the image tower may merge some later
        patches = image - self.protected
        height, width = self.manifest.preprocess.size
        rows = max(1, round(math.sqrt(patches * height / width)))
        return (rows, patches // rows)

    def grid_of(self, shape: Shape) -> tuple[int, int]:
        """Return the rows and columns of the patches of an image."""
        height, width = self.manifest.preprocess.size
        if shape == (height, width):
            return self.grid
        rows, columns = self.grid
        return (shape[0] * rows // height, shape[1] * columns // width)

    def image_tokens(self, shape: Shape) -> int:
        """Return the tokens of an image where it meets the text."""
        nominal = self.levels.nominal
        if nominal is not None and shape == self.manifest.preprocess.size:
            return nominal.image
        rows, columns = self.grid_of(shape)
        return self.protected + rows * columns
