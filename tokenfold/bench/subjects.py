"""A bundle's graphs under one plan, run as the service runs them: that is what the bench measures.

Of a network with texts one question is asked of one image, both new in every run; the text has as
many tokens as the network takes, for that is what its plans and FLOPs are of. Of a dual encoder
images are embedded; texts, of as many tokens too, are a subject of their own.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from tokenfold.bench.measure import Queue, Subject
from tokenfold.bundle.bundle import Bundle
from tokenfold.bundle.tasks import PairTask
from tokenfold.bundle.text import TextEncoder, random_texts
from tokenfold.bundle.workload import Plan
from tokenfold.runtime.dual import DualSession
from tokenfold.runtime.pair import Float, Int, PairRunner, PairSession, ask
from tokenfold.runtime.session import BaseSession, Session, SessionOptions

Images: TypeAlias = npt.NDArray[np.uint8]
DIFFERENT = 16
SEED = 0
ON_CPU = SessionOptions()


class Questions(NamedTuple):
    """A batch for a network with texts.

    Attributes:
        images: (B, H, W, 3) each; two to reason about.
        ids, size: of the texts, (B, T) each.
    """

    task: PairTask
    images: tuple[Images, ...]
    ids: Int
    size: Float


class Graphs(ABC):
    """An opened bundle of any kind.

    Attributes:
        native: whether the compiled ops run.
    """

    session: BaseSession

    def __init__(self, bundle: Bundle) -> None:
        """Call it last."""
        self.native = self.session.native
        self._size = bundle.manifest.preprocess.size

    @abstractmethod
    def run(self, given: Any, plan: Plan) -> Float:
        """The logits (B, classes) or vectors (B, width) of one of `random_inputs`."""

    def resident(self, given: Any, plan: Plan) -> Queue | None:
        """One input again and again, on the GPU already; None where there is no such way."""
        return Queue(self.session.resident(given, plan), self.session.wait)

    def warm(self, plans: Sequence[Plan], batches: Sequence[int]) -> int:
        """Record what a GPU is to run, so that no run that counts has to.

        Returns:
            How many runs are recorded; fewer than plans times batches where it cannot be.
        """
        # The largest first: the others find room in the memory that it took.
        for batch in sorted(batches, reverse=True):
            images = np.zeros((batch, *self._size, 3), dtype=np.uint8)
            for plan in plans:
                self.session.resident(images, plan)
        return self.session.graph.recorded

    def close(self) -> None:
        """Give back what is on the GPU; it is of no use then."""
        self.session.close()


class ImageGraphs(Graphs):
    """Of a bundle that classifies images."""

    def __init__(self, bundle: Bundle, opening: SessionOptions = ON_CPU) -> None:
        self.session: Session = Session(bundle, **opening._asdict())
        super().__init__(bundle)

    def run(self, given: Images, plan: Plan) -> Float:
        """See `Graphs`."""
        return self.session.run(given, plan).logits


class PairGraphs(Graphs):
    """Of a bundle that takes images with texts."""

    def __init__(self, bundle: Bundle, opening: SessionOptions = ON_CPU) -> None:
        self.session: PairSession = PairSession(bundle, **opening._asdict())
        super().__init__(bundle)

    def run(self, given: Questions, plan: Plan) -> Float:
        """See `Graphs`."""
        return answer(self.session, given, plan)

    def resident(self, given: Questions, plan: Plan) -> Queue | None:  # noqa: ARG002
        """None: an answer takes two graphs, with the host between them."""
        return None

    def warm(self, plans: Sequence[Plan], batches: Sequence[int]) -> int:  # noqa: ARG002
        """Of the graph that embeds images, which has no plan."""
        return super().warm([()], batches)


class DualGraphs(Graphs):
    """Of a dual encoder's bundle."""

    def __init__(self, bundle: Bundle, opening: SessionOptions = ON_CPU) -> None:
        self.session: DualSession = DualSession(bundle, **opening._asdict())
        super().__init__(bundle)

    def run(self, given: Images, plan: Plan) -> Float:
        """See `Graphs`."""
        return self.session.embed_images(given, plan).vectors


def opened(
    bundle: Bundle, opening: SessionOptions = ON_CPU
) -> ImageGraphs | PairGraphs | DualGraphs:
    """The graphs of a bundle, loaded.

    Raises:
        RuntimeError: the device cannot be used, or an engine is missing.
    """
    if bundle.manifest.kind == "pair":
        return PairGraphs(bundle, opening)
    if bundle.manifest.kind == "dual":
        return DualGraphs(bundle, opening)
    return ImageGraphs(bundle, opening)


def answer(network: PairRunner, given: Questions, plan: Plan) -> Float:
    """The logits (B, classes), the images embedded and all."""
    images = [network.embed(side) for side in given.images]
    plans = [plan] * len(images)
    logits = ask(network, images, given.ids, given.size, plans, task=given.task)[-1].logits
    assert logits is not None
    return logits


def random_inputs(bundle: Bundle, batch: int, different: int = DIFFERENT) -> list[Any]:
    """Batches of noise for a bundle of any kind, for runs to take turns with.

    Args:
        batch: images of each.
        different: so many batches.
    """
    if bundle.manifest.kind == "pair":
        return random_questions(bundle, batch, different)
    return random_batches(bundle.manifest.preprocess.size, batch, different)


def random_batches(size: tuple[int, int], batch: int, different: int = DIFFERENT) -> list[Images]:
    """Different batches of noise, (batch, H, W, 3) each.

    Args:
        size: height and width, pixels.
    """
    draw = np.random.default_rng(SEED)
    shape = (batch, *size, 3)
    return [draw.integers(0, 256, shape, dtype=np.uint8) for _ in range(different)]


def random_questions(bundle: Bundle, batch: int, different: int = DIFFERENT) -> list[Questions]:
    """The same with texts; they are about one image where a task of the bundle is."""
    manifest = bundle.manifest
    task = min(manifest.pair_tasks, key=lambda task: task == "reason")
    batches = random_batches(manifest.preprocess.size, batch, different)
    return [
        # To reason, the next batch has the second images.
        Questions(task, (images, batches[at - 1]) if task == "reason" else (images,), *texts)
        for at, (images, texts) in enumerate(
            zip(batches, longest_texts(bundle, batch, different), strict=True)
        )
    ]


def longest_texts(
    bundle: Bundle, batch: int, different: int = DIFFERENT
) -> list[tuple[Int, Float]]:
    """Different batches of texts of the most tokens, as ids and sizes (batch, T)."""
    assert bundle.manifest.text is not None
    longest = bundle.manifest.text.most_tokens
    text = TextEncoder.open(bundle.tokenizer, longest)
    return [random_texts(text, [longest] * batch, at) for at in range(different)]


def of_graph(
    graphs: Graphs, inputs: Sequence[Any], plan: Plan, callers: int, batch: int
) -> Subject:
    """The graphs, run from `callers` threads at once."""

    def run(turn: int) -> object:
        return graphs.run(inputs[turn % len(inputs)], plan)

    return Subject(run, callers, batch)


def of_texts(
    graphs: DualGraphs, inputs: Sequence[tuple[Int, Float]], callers: int, batch: int
) -> Subject:
    """The graph that makes vectors of texts, likewise."""

    def run(turn: int) -> object:
        return graphs.session.embed_texts(*inputs[turn % len(inputs)])

    return Subject(run, callers, batch)
