"""Running the graphs of a network that sees an image with a text. No torch in here."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from tokenfold.bundle.bundle import Bundle
from tokenfold.bundle.preprocess import Pixels
from tokenfold.bundle.tasks import PairTask
from tokenfold.bundle.workload import Plan
from tokenfold.runtime import hugepages
from tokenfold.runtime.session import BaseSession, Device, Opening

Float = npt.NDArray[np.float32]
Int = npt.NDArray[np.int64]


class PairOutput(NamedTuple):
    """What became of a text with an image.

    Attributes:
        logits: (B, classes); None in the first of the two passes of `reason`.
        pooled: (B, P), what the heads see of this image.
        text_slots, image_slots: (B, T) and (B, I), where each token ended up, -1 where it was
            dropped; see `tokenfold.models.pair.Fused`. None where they were not asked for.
    """

    logits: Float | None
    pooled: Float
    text_slots: Int | None
    image_slots: Int | None


class Asked(Protocol):
    """Graphs, or the network in PyTorch that they came from; see `PairSession`."""

    def embed(self, images: Pixels) -> Float:
        """Images to image tokens."""
        ...

    def fuse(
        self,
        image_tokens: Float,
        input_ids: Int,
        text_size: Float,
        plan: Plan,
        *,
        task: PairTask,
        second: bool = False,
        other: Float | None = None,
        slots: bool = False,
    ) -> PairOutput:
        """Image tokens with a text to answers."""
        ...


def ask(
    network: Asked,
    images: Sequence[Float],
    ids: Int,
    size: Float,
    plans: Sequence[Plan],
    *,
    task: PairTask,
    slots: bool = False,
) -> list[PairOutput]:
    """Ask about the images that a task looks at; the last output has the logits.

    Args:
        images: embedded, (B, I, D) each; two to reason about.
        ids, size: of the text, (B, T).
        plans: one for each image.
    """
    found: list[PairOutput] = []
    for tokens, plan in zip(images, plans, strict=True):
        other = found[-1].pooled if found else None
        found.append(
            network.fuse(
                tokens, ids, size, plan, task=task, second=bool(found), other=other, slots=slots
            )
        )
    return found


class PairSession(BaseSession):
    """The two graphs of a bundle: one copy of the weights, any number of threads at once.

    A pair of images is reasoned about in two passes of `fuse`: the left one gives `pooled`, which
    goes into the right one's as `other`. What it inherits is of `embed`, which takes no plan.
    """

    def __init__(
        self,
        bundle: Bundle,
        *,
        threads: int = 1,
        native: bool = True,
        device: Device = "cpu",
        engines: Path | None = None,
        static: bool = True,
    ) -> None:
        """Load both graphs; see `tokenfold.runtime.session.open_graph` and `open_engine`."""
        super().__init__(bundle.vision, bundle, Opening(device, threads, native, engines, static))
        self._joint = self._another(bundle.joint)
        self.native = self._joint.native
        if device == "cpu":
            hugepages.collapse()

    def embed(self, images: Pixels) -> Float:
        """Images (B, H, W, 3) uint8 -> image tokens (B, I, D), whatever they are asked then."""
        found = self.graph.run(["image_tokens"], {"image": images})
        tokens: Float = found[0]
        return tokens

    def fuse(
        self,
        image_tokens: Float,
        input_ids: Int,
        text_size: Float,
        plan: Plan,
        *,
        task: PairTask,
        second: bool = False,
        other: Float | None = None,
        slots: bool = False,
    ) -> PairOutput:
        """Ask a batch.

        Args:
            image_tokens: (B, I, D) of `embed`.
            input_ids: (B, T).
            text_size: (B, T), 1 for a token and 0 for padding, which is at the end.
            plan: the bundle's kind of counts, for this I and T.
            task: one of the bundle's.
            second: whether it is the second image to reason about.
            other: (B, P), the first image's `pooled`, with the second.
            slots: whether to return the composed slots too.

        Raises:
            ValueError: a second image without the first, or the other way round.
        """
        if second != (other is not None):
            raise ValueError("the second image comes with the first one's pooled output")
        feeds: dict[str, Any] = {
            "image_tokens": image_tokens,
            "input_ids": input_ids,
            "text_size": text_size,
            "plan": np.asarray(plan, dtype=np.int64),
        }
        if "second" in self._joint.inputs:
            feeds["second"] = np.array([second], dtype=np.int64)
            feeds["other"] = self._nobody(len(input_ids)) if other is None else other
        names = ["pooled"]
        answered = task != "reason" or second
        if answered:
            names.append(task)
        if slots:
            names += ["text_slots", "image_slots"]
        found = dict(zip(names, self._joint.run(names, feeds), strict=True))
        return PairOutput(
            found.get(task), found["pooled"], found.get("text_slots"), found.get("image_slots")
        )

    def warm(self, _: Iterable[Plan]) -> None:
        """Prepare runs of `embed`: on a GPU they are recorded. `fuse` depends on texts too."""
        super().warm([()])

    def close(self) -> None:
        """Give back what is on a GPU; later runs fail."""
        super().close()
        self._joint.close()

    def _nobody(self, batch: int) -> Float:
        """What stands for the other image where there is none."""
        width = self._joint.inputs["other"][1]
        assert isinstance(width, int)
        return np.zeros((batch, width), dtype=np.float32)
