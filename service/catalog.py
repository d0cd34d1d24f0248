"""The models that are served."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from functools import cached_property
from pathlib import Path

from export.bundle import Bundle, BundleError
from models.reduction.workload import Workload
from service.backends.backend import Backend
from service.costs import Costs
from service.errors import UnknownModel
from service.levels import Levels

Load = Callable[[Bundle], Backend]


class Model:
    """A bundle, and once it is loaded what runs it.

    Attributes:
        ready: loaded and warmed up.
    """

    def __init__(self, bundle: Bundle, *, default_level: str | None = None) -> None:
        self.bundle = bundle
        self.manifest = bundle.manifest
        self.name = bundle.manifest.name
        self.task = next(iter(bundle.manifest.tasks))
        self.costs = Costs(bundle.manifest.workload)
        self.levels = Levels(bundle.manifest, bundle.profile, self.costs, default=default_level)
        self.ready = False
        self._backend: Backend | None = None

    @property
    def backend(self) -> Backend:
        """What runs it."""
        if self._backend is None:
            raise RuntimeError(f"{self.name} is not loaded")
        return self._backend

    def load(self, load: Load) -> None:
        """Bring the weights into memory."""
        self._backend = load(self.bundle)

    @cached_property
    def weights(self) -> int:
        """Bytes of the graph with its weights."""
        return self.bundle.model.stat().st_size

    @property
    def labels(self) -> tuple[str, ...]:
        """In the order of the logits."""
        return self.manifest.tasks[self.task]

    @property
    def protected(self) -> int:
        """Leading tokens that are never merged."""
        workload = self.manifest.workload
        return workload.protected if isinstance(workload, Workload) else 0

    @cached_property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of the patches: the unprotected tokens, row by row."""
        patches = self.manifest.workload.tokens - self.protected
        height, width = self.manifest.preprocess.size
        rows = max(1, round(math.sqrt(patches * height / width)))
        return (rows, patches // rows)


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
        try:
            return self._models[name]
        except KeyError:
            raise UnknownModel(
                f"There is no model {name!r}; known: {', '.join(self._models)}."
            ) from None

    def find(self, name: str | None, task: str) -> Model:
        """The model for a request of a task, the default one if it names none.

        Raises:
            UnknownModel: none of that name does this task.
        """
        fit = {model.name: model for model in self if model.task == task}
        wanted = name
        if wanted is None:
            wanted = self._default if self._default in fit else next(iter(fit), None)
        if wanted is None:
            raise UnknownModel(f"No model here can {task}.")
        if wanted not in fit:
            raise UnknownModel(
                f"There is no model {wanted!r} to {task}; known: {', '.join(fit) or 'none'}."
            )
        return fit[wanted]
