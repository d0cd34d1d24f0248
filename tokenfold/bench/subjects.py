"""Subjects that the bench measures: a bundle's graphs under one plan, run as the service runs them.

For a network with texts, each run asks one new question about one new image; the text has the
maximum number of tokens, which is what plans and FLOPs assume. For a dual encoder, each run embeds
images; texts of the maximum length are a separate subject.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from tokenfold.bench.measure import LaunchQueue, Subject
from tokenfold.bundle.bundle import Bundle
from tokenfold.bundle.tasks import PairTask
from tokenfold.bundle.text import TextEncoder, random_texts
from tokenfold.bundle.workload import Plan
from tokenfold.runtime.dual import DualSession
from tokenfold.runtime.pair import Float, Int, PairRunner, PairSession, ask
from tokenfold.runtime.session import BaseSession, Session, SessionOptions

Images: TypeAlias = npt.NDArray[np.uint8]
DISTINCT_BATCHES = 16
SEED = 0
ON_CPU = SessionOptions()


class Questions(NamedTuple):
    """A batch for a network with texts.

    Attributes:
        images: one (B, H, W, 3) array, or two for a task that reasons about two images.
        ids, size: token ids and sizes of the texts, (B, T) each.
    """

    task: PairTask
    images: tuple[Images, ...]
    ids: Int
    size: Float


class Graphs(ABC):
    """The graphs of an opened bundle of any kind.

    Attributes:
        native: whether the compiled ops run.
    """

    session: BaseSession

    def __init__(self, bundle: Bundle) -> None:
        """Initialise the attributes; subclasses call this last."""
        self.native = self.session.native
        self._size = bundle.manifest.preprocess.size

    @abstractmethod
    def run(self, inputs: Any, plan: Plan) -> Float:
        """Return logits (B, classes) or embeddings (B, width) of an input from `random_inputs`."""

    def resident(self, inputs: Any, plan: Plan) -> LaunchQueue | None:
        """Return a launch queue of one input that stays on the GPU; None if unsupported."""
        return LaunchQueue(self.session.resident(inputs, plan), self.session.wait)

    def warm(self, plans: Sequence[Plan], batches: Sequence[int]) -> int:
        """Record the runs of a GPU, so that no measured run has to.

        Returns:
            Number of recorded runs, fewer than plans times batches if recording is impossible.
        """
        # The largest batch first: smaller ones reuse its memory.
        for batch in sorted(batches, reverse=True):
            images = np.zeros((batch, *self._size, 3), dtype=np.uint8)
            for plan in plans:
                self.session.resident(images, plan)
        return self.session.graph.recorded

    def close(self) -> None:
        """Release the GPU's resources; the graphs cannot run afterwards."""
        self.session.close()


class ImageGraphs(Graphs):
    """Graphs of a bundle that classifies images."""

    def __init__(self, bundle: Bundle, opening: SessionOptions = ON_CPU) -> None:
        self.session: Session = Session(bundle, **opening._asdict())
        super().__init__(bundle)

    def run(self, inputs: Images, plan: Plan) -> Float:
        """See `Graphs`."""
        return self.session.run(inputs, plan).logits


class PairGraphs(Graphs):
    """Graphs of a bundle that takes images with texts."""

    def __init__(self, bundle: Bundle, opening: SessionOptions = ON_CPU) -> None:
        self.session: PairSession = PairSession(bundle, **opening._asdict())
        super().__init__(bundle)

    def run(self, inputs: Questions, plan: Plan) -> Float:
        """See `Graphs`."""
        return pair_logits(self.session, inputs, plan)

    def resident(self, inputs: Questions, plan: Plan) -> LaunchQueue | None:  # noqa: ARG002
        """Return None, because answering runs two graphs and passes data through the host."""
        return None

    def warm(self, plans: Sequence[Plan], batches: Sequence[int]) -> int:  # noqa: ARG002
        """Record the graph that embeds images, which has no plan."""
        return super().warm([()], batches)


class DualGraphs(Graphs):
    """Graphs of a dual encoder's bundle."""

    def __init__(self, bundle: Bundle, opening: SessionOptions = ON_CPU) -> None:
        self.session: DualSession = DualSession(bundle, **opening._asdict())
        super().__init__(bundle)

    def run(self, inputs: Images, plan: Plan) -> Float:
        """See `Graphs`."""
        return self.session.embed_images(inputs, plan).vectors


def open_graphs(
    bundle: Bundle, opening: SessionOptions = ON_CPU
) -> ImageGraphs | PairGraphs | DualGraphs:
    """Load the graphs of a bundle.

    Raises:
        RuntimeError: the device cannot be used, or an engine is missing.
    """
    if bundle.manifest.kind == "pair":
        return PairGraphs(bundle, opening)
    if bundle.manifest.kind == "dual":
        return DualGraphs(bundle, opening)
    return ImageGraphs(bundle, opening)


def pair_logits(network: PairRunner, inputs: Questions, plan: Plan) -> Float:
    """Embed the images, answer the questions and return the logits (B, classes)."""
    images = [network.embed(side) for side in inputs.images]
    plans = [plan] * len(images)
    logits = ask(network, images, inputs.ids, inputs.size, plans, task=inputs.task)[-1].logits
    assert logits is not None
    return logits


def random_inputs(bundle: Bundle, batch: int, count: int = DISTINCT_BATCHES) -> list[Any]:
    """Return batches of noise for a bundle of any kind, for runs to cycle through.

    Args:
        batch: images per batch.
        count: number of batches.
    """
    if bundle.manifest.kind == "pair":
        return random_questions(bundle, batch, count)
    return random_batches(bundle.manifest.preprocess.size, batch, count)


def random_batches(
    size: tuple[int, int], batch: int, count: int = DISTINCT_BATCHES
) -> list[Images]:
    """Return different batches of noise, (batch, H, W, 3) each.

    Args:
        size: height and width, pixels.
    """
    draw = np.random.default_rng(SEED)
    shape = (batch, *size, 3)
    return [draw.integers(0, 256, shape, dtype=np.uint8) for _ in range(count)]


def random_questions(bundle: Bundle, batch: int, count: int = DISTINCT_BATCHES) -> list[Questions]:
    """Return different batches of noise with texts.

    The questions are about one image if the bundle has a task about single images.
    """
    manifest = bundle.manifest
    task = min(manifest.pair_tasks, key=lambda task: task == "reason")
    batches = random_batches(manifest.preprocess.size, batch, count)
    return [
        # A reasoning task takes its second images from another batch.
        Questions(task, (images, batches[index - 1]) if task == "reason" else (images,), *texts)
        for index, (images, texts) in enumerate(
            zip(batches, longest_texts(bundle, batch, count), strict=True)
        )
    ]


def longest_texts(
    bundle: Bundle, batch: int, count: int = DISTINCT_BATCHES
) -> list[tuple[Int, Float]]:
    """Return different batches of texts of the maximum length, as ids and sizes (batch, T)."""
    assert bundle.manifest.text is not None
    longest = bundle.manifest.text.most_tokens
    encoder = TextEncoder.open(bundle.tokenizer, longest)
    return [random_texts(encoder, [longest] * batch, seed) for seed in range(count)]


def graph_subject(
    graphs: Graphs, inputs: Sequence[Any], plan: Plan, callers: int, batch: int
) -> Subject:
    """Return a subject that runs the graphs from `callers` threads concurrently."""

    def run(run_number: int) -> object:
        return graphs.run(inputs[run_number % len(inputs)], plan)

    return Subject(run, callers, batch)


def text_subject(
    graphs: DualGraphs, inputs: Sequence[tuple[Int, Float]], callers: int, batch: int
) -> Subject:
    """Return a subject that embeds texts from `callers` threads concurrently."""

    def run(run_number: int) -> object:
        return graphs.session.embed_texts(*inputs[run_number % len(inputs)])

    return Subject(run, callers, batch)
