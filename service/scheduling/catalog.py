"""The served models."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from tokenfold.bundle.bundle import Bundle, BundleError
from tokenfold.bundle.tasks import Task
from tokenfold.inference.model import Model
from tokenfold.service.errors import UnknownModel
from tokenfold.service.scheduling.backends.chain import BackendChain
from tokenfold.service.scheduling.costs import Costs

Load = Callable[[Bundle], BackendChain]


class ServedModel(Model):
    """A model with the backends that run it.

    Attributes:
        costs: expected duration of its runs.
        ready: whether it is loaded and warmed up.
    """

    def __init__(self, bundle: Bundle, *, default_level: str | None = None) -> None:
        """Describe a bundle's model; `load` loads it.

        Raises:
            UnknownLevel: the model has no such default level.
        """
        self.costs = Costs()
        self.ready = False
        self._backend: BackendChain | None = None
        super().__init__(bundle, default_level=default_level, seconds=self.costs.seconds)

    @property
    def backend(self) -> BackendChain:
        """The backends."""
        if self._backend is None:
            raise RuntimeError(f"{self.name} is not loaded")
        return self._backend

    def load(self, load: Load) -> None:
        """Load the weights and the tokenizer.

        Raises:
            BundleError: the tokenizer cannot be read.
            Exception: of `load`.
        """
        self._backend = load(self.bundle)
        self.open_text()


class Catalog:
    """Models by name, in the order of their folders."""

    def __init__(self, models: Iterable[ServedModel], *, default: str | None = None) -> None:
        self._models: dict[str, ServedModel] = {}
        for model in models:
            other = self._models.setdefault(model.name, model)
            if other is not model:
                raise BundleError(
                    f"{other.bundle.folder} and {model.bundle.folder} have the same name, "
                    f"{model.name}"
                )
        if default is not None and default not in self._models:
            raise BundleError(
                f"the default model {default!r} does not exist; known: {', '.join(self._models)}"
            )
        self._default = default

    @classmethod
    def open(
        cls, root: Path, *, default: str | None = None, default_level: str | None = None
    ) -> Catalog:
        """Open the bundles at or directly below a folder, without loading them.

        Args:
            root: the folder.
            default: name of the default model.
            default_level: default level of every model; by default the one of its manifest.

        Raises:
            BundleError: there is no bundle, one is damaged, or two have the same name.
            UnknownLevel: a bundle lacks the default level.
        """
        folders = Bundle.find(root)
        if not folders:
            raise BundleError(f"there is no bundle in {root}")
        return cls(
            (ServedModel(Bundle.open(folder), default_level=default_level) for folder in folders),
            default=default,
        )

    def __iter__(self) -> Iterator[ServedModel]:
        return iter(self._models.values())

    def get(self, name: str) -> ServedModel:
        """Return the model of a name.

        Raises:
            UnknownModel: no model has that name; the message lists the known ones.
        """
        model = self.named(name)
        if model is None:
            raise UnknownModel(f"There is no model {name!r}; known: {', '.join(self._models)}.")
        return model

    def named(self, name: str) -> ServedModel | None:
        """Return the model of a name, or None."""
        return self._models.get(name)

    def find(self, name: str | None, task: Task) -> ServedModel:
        """Return the model for a request, the default model of the task if `name` is None.

        Raises:
            UnknownModel: no model of that name has the task.
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
