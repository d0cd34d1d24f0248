"""The models that are served."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterable, Iterator
from functools import cached_property
from pathlib import Path

from tokenfold.bundle.bundle import Bundle, BundleError
from tokenfold.bundle.manifest import GRAPHS
from tokenfold.bundle.pair_workload import MeterWorkload
from tokenfold.bundle.tasks import Task
from tokenfold.bundle.text import EmptyTextError, TextEncoder
from tokenfold.bundle.workload import ImageWorkload
from tokenfold.service.errors import UnknownModel
from tokenfold.service.scheduling.backends.chain import BackendChain
from tokenfold.service.scheduling.costs import Costs
from tokenfold.service.scheduling.levels import Levels

Load = Callable[[Bundle], BackendChain]


class Model:
    """A bundle, and once it is loaded what runs it.

    Attributes:
        ready: loaded and warmed up.
    """

    def __init__(self, bundle: Bundle, *, default_level: str | None = None) -> None:
        self.bundle = bundle
        self.manifest = bundle.manifest
        self.name = bundle.manifest.name
        self.tasks = bundle.manifest.tasks
        self.costs = Costs()
        self.levels = Levels(bundle.manifest, bundle.profile, self.costs, default=default_level)
        self.ready = False
        self._backend: BackendChain | None = None
        self._text: TextEncoder | None = None

    @property
    def backend(self) -> BackendChain:
        """What runs it."""
        if self._backend is None:
            raise RuntimeError(f"{self.name} is not loaded")
        return self._backend

    def load(self, load: Load) -> None:
        """Bring the weights into memory."""
        self._backend = load(self.bundle)
        text = self.manifest.text
        if text is not None:
            try:
                self._text = TextEncoder.open(self.bundle.tokenizer, text.most_tokens, text.padding)
            except ValueError as error:
                raise BundleError(str(error)) from error
            with contextlib.suppress(EmptyTextError):
                self._text.encode("What is it?")  # the first one takes a hundred times as long

    @property
    def text(self) -> TextEncoder:
        """What reads its texts."""
        if self._text is None:
            raise RuntimeError(f"{self.name} takes no texts, or is not loaded")
        return self._text

    @cached_property
    def weights(self) -> int:
        """Bytes of the graphs with their weights."""
        files = self.manifest.files
        return sum(files[name].bytes for name in GRAPHS[self.manifest.kind])

    def labels(self, task: Task) -> tuple[str, ...]:
        """Of one of its tasks, in the order of the logits; none for a logit that ranks."""
        return self.tasks[task]

    @property
    def protected(self) -> int:
        """Leading tokens of an image that are no patches."""
        workload = self.manifest.workload
        return workload.protected if isinstance(workload, ImageWorkload) else 1

    @cached_property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of the patches of an image of the nominal size, row by row."""
        workload = self.manifest.workload
        nominal = self.levels.nominal
        image = workload.tokens if nominal is None else nominal.image
        if isinstance(workload, MeterWorkload):
            image = workload.vision_widths[0]  # its tower may merge some
        patches = image - self.protected
        height, width = self.manifest.preprocess.size
        rows = max(1, round(math.sqrt(patches * height / width)))
        return (rows, patches // rows)

    def grid_of(self, shape: tuple[int, int]) -> tuple[int, int]:
        """Rows and columns of the patches of an image of (height, width) pixels."""
        height, width = self.manifest.preprocess.size
        if shape == (height, width):
            return self.grid
        rows, columns = self.grid
        return (shape[0] * rows // height, shape[1] * columns // width)

    def image_tokens(self, shape: tuple[int, int]) -> int:
        """Tokens of an image of (height, width) pixels, where it meets the text."""
        nominal = self.levels.nominal
        if nominal is not None and shape == self.manifest.preprocess.size:
            return nominal.image
        rows, columns = self.grid_of(shape)
        return self.protected + rows * columns


class Catalog:
    """Models by name, in the order of their folders."""

    def __init__(self, models: Iterable[Model], *, default: str | None = None) -> None:
        self._models: dict[str, Model] = {}
        for model in models:
            other = self._models.setdefault(model.name, model)
            if other is not model:
                raise BundleError(
                    f"{other.bundle.folder} and {model.bundle.folder} are both called {model.name}"
                )
        if default is not None and default not in self._models:
            raise BundleError(
                f"there is no model {default!r} to be the default; known: {', '.join(self._models)}"
            )
        self._default = default

    @classmethod
    def open(
        cls, root: Path, *, default: str | None = None, default_level: str | None = None
    ) -> Catalog:
        """The bundles at or directly below a folder, checked but not loaded.

        Raises:
            BundleError: there is none, or one is damaged, or two have one name.
            UnknownLevel: a bundle lacks the default level.
        """
        folders = Bundle.find(root)
        if not folders:
            raise BundleError(f"there is no bundle in {root}")
        return cls(
            (Model(Bundle.open(folder), default_level=default_level) for folder in folders),
            default=default,
        )

    def __iter__(self) -> Iterator[Model]:
        return iter(self._models.values())

    def get(self, name: str) -> Model:
        """The model of a name.

        Raises:
            UnknownModel: it lists the known ones.
        """
        model = self.named(name)
        if model is None:
            raise UnknownModel(f"There is no model {name!r}; known: {', '.join(self._models)}.")
        return model

    def named(self, name: str) -> Model | None:
        """The model of a name, if there is one."""
        return self._models.get(name)

    def find(self, name: str | None, task: Task) -> Model:
        """The model for a request of a task, the default one if it names none.

        Raises:
            UnknownModel: none of that name does this task.
        """
        fit = {model.name: model for model in self if task in model.tasks}
        wanted = name
        if wanted is None:
            wanted = self._default if self._default in fit else next(iter(fit), None)
        if wanted is None:
            raise UnknownModel(f"There is no model for {task}.")
        if wanted not in fit:
            raise UnknownModel(
                f"There is no model {wanted!r} for {task}; known: {', '.join(fit) or 'none'}."
            )
        return fit[wanted]
