"""Base class of the families of networks."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar, Generic, NotRequired, Protocol, TypedDict, TypeVar

import torch

from tokenfold.bundle.bundle import Bundle
from tokenfold.bundle.manifest import (
    AnyWorkload,
    Kind,
    Manifest,
    Scoring,
    Similarity,
    TextSpec,
)
from tokenfold.bundle.preprocess import Preprocess
from tokenfold.bundle.profile import LevelProfile
from tokenfold.bundle.tasks import Task
from tokenfold.export.stages import Workers
from tokenfold.export.verification.comparison import Answers
from tokenfold.runtime.session import BaseSession

S = TypeVar("S", bound=BaseSession)
N = TypeVar("N")


class ModelGraph(Protocol):
    """A network that is ready to be traced."""

    def write(self, path: Path) -> None:
        """Trace the network and write the ONNX file."""
        ...


class ManifestFields(TypedDict):
    """Fields of the manifest that a family supplies; see `tokenfold.bundle.manifest.Manifest`."""

    preprocess: Preprocess
    tasks: dict[Task, tuple[str, ...]]
    proportional: NotRequired[bool]
    scores: NotRequired[dict[Task, Scoring]]
    similarity: NotRequired[Similarity]
    text: NotRequired[TextSpec]
    weighted: NotRequired[bool]


class Family(ABC, Generic[S, N]):
    """Base class of the families: a checkpoint with its recipe.

    S is the class of the family's sessions, N the interface that they share
    with the PyTorch network.

    The constructor of each family checks that the recipe fits the network, and lists the data to
    measure on; it raises RecipeError or DataError otherwise.

    Attributes:
        kind: kind of network, which determines the names of the graphs.
        workload: sizes of the network, from which the schedule computes plans.
        samples: number of items to measure on; 0 without data.
        reference: the network in PyTorch.
    """

    kind: ClassVar[Kind]
    workload: AnyWorkload
    samples: int = 0
    reference: N

    @abstractmethod
    def graphs(self, dtype: torch.dtype) -> Iterator[tuple[str, ModelGraph]]:
        """Yield the file name of each graph with its network, one at a time to save memory.

        Args:
            dtype: type of weights and tokens.
        """

    def write_tokenizer(self, folder: Path) -> None:
        """Write the tokenizer of a network that takes texts."""

    @abstractmethod
    def manifest_fields(self) -> ManifestFields:
        """Return the family's fields of the manifest."""

    @abstractmethod
    def open_session(self, bundle: Bundle, *, native: bool = True) -> S:
        """Load the graphs of a bundle.

        Args:
            native: whether to use the compiled ops where they are built.
        """

    @abstractmethod
    def answers(self, manifest: Manifest, network: N) -> Answers:
        """Return the answers of a session or of the reference to the verification inputs."""

    @abstractmethod
    def measure(self, manifest: Manifest, session: S, workers: Workers) -> dict[str, LevelProfile]:
        """Measure the quality of each level on the recipe's images.

        Raises:
            DataError: an image or a text cannot be read.
        """
