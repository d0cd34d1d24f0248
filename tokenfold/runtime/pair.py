"""Sessions of vision-language networks: images with texts to answers. Independent of torch."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from tokenfold.bundle.bundle import Bundle
from tokenfold.bundle.preprocess import Pixels
from tokenfold.bundle.tasks import PairTask
from tokenfold.bundle.workload import Plan
from tokenfold.runtime.session import BaseSession

Float = npt.NDArray[np.float32]
Int = npt.NDArray[np.int64]


class PairOutput(NamedTuple):
    """Output for a batch of images with texts.

    Attributes:
        logits: (B, classes); None for the first image of `reason`.
        pooled: (B, P), the image's part of the input of the heads.
        text_slots, image_slots: (B, T) and (B, I), the final position of each token, -1 if it was
            dropped; see `tokenfold.models.networks.pair.Fused`. None unless requested.
    """

    logits: Float | None
    pooled: Float
    text_slots: Int | None
    image_slots: Int | None


class FusionInputs(NamedTuple):
    """Inputs of `PairRunner.fuse`.

    Attributes:
        image_tokens: (B, I, D), output of `embed`.
        input_ids: (B, T).
        text_size: (B, T), 1 for a token and 0 for padding, which is at the end.
        plan: counts of the bundle's method, for this I and T.
        task: one of the bundle's tasks.
        other: (B, P), pooled output of the first image, for the second image of `reason`; None for
            any other image.
    """

    image_tokens: Float
    input_ids: Int
    text_size: Float
    plan: Plan
    task: PairTask
    other: Float | None

    @property
    def has_logits(self) -> bool:
        """Whether the task is answered with this image, rather than with the second one."""
        return self.task != "reason" or self.other is not None


class PairRunner(ABC):
    """A vision-language network: `PairSession`, or the network in PyTorch of its graphs."""

    @abstractmethod
    def embed(self, images: Pixels) -> Float:
        """Map images (B, H, W, 3) uint8 to image tokens (B, I, D), independently of the text."""

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
        """Run a batch of image tokens with texts.

        Args:
            image_tokens, input_ids, text_size, plan, task, other: see `FusionInputs`.
            second: whether the images are the second ones of `reason`.
            slots: whether to return the composed slots too.

        Raises:
            ValueError: `other` is given without `second`, or `second` without `other`.
        """
        if second != (other is not None):
            raise ValueError(
                "second and other go together: a second image needs the first one's pooled output"
            )
        inputs = FusionInputs(image_tokens, input_ids, text_size, plan, task, other)
        return self._fuse(inputs, slots)

    @abstractmethod
    def _fuse(self, inputs: FusionInputs, slots: bool) -> PairOutput:
        """Implement `fuse`, whose arguments have been checked."""


def ask(
    network: PairRunner,
    images: Sequence[Float],
    ids: Int,
    size: Float,
    plans: Sequence[Plan],
    *,
    task: PairTask,
    slots: bool = False,
) -> list[PairOutput]:
    """Run all images of a task with its texts; the last output has the logits.

    Args:
        images: image tokens (B, I, D) of each image; two for `reason`.
        ids, size: ids and sizes of the texts, (B, T).
        plans: one for each image.
    """
    outputs: list[PairOutput] = []
    for tokens, plan in zip(images, plans, strict=True):
        other = outputs[-1].pooled if outputs else None
        outputs.append(
            network.fuse(
                tokens, ids, size, plan, task=task, second=bool(outputs), other=other, slots=slots
            )
        )
    return outputs


class PairSession(BaseSession, PairRunner):
    """The two graphs of a vision-language network.

    `reason` takes two runs of `fuse`: the pooled output of the left image is the input `other` of
    the right image. The inherited methods refer to the graph of `embed`, which has no plan.
    """

    @staticmethod
    def _paths(bundle: Bundle) -> Sequence[Path]:
        return bundle.vision, bundle.joint

    def embed(self, images: Pixels) -> Float:
        """Map images to image tokens; see `PairRunner.embed`."""
        tokens: Float = self.graph.run(["image_tokens"], {"image": images})[0]
        return tokens

    def _fuse(self, inputs: FusionInputs, slots: bool) -> PairOutput:
        joint, task = self._graphs[1], inputs.task
        feeds: dict[str, Any] = {
            "image_tokens": inputs.image_tokens,
            "input_ids": inputs.input_ids,
            "text_size": inputs.text_size,
            "plan": np.asarray(inputs.plan, dtype=np.int64),
        }
        if "second" in joint.inputs:
            first = inputs.other is None
            feeds["second"] = np.array([not first], dtype=np.int64)
            feeds["other"] = self._zero_pooled(len(inputs.input_ids)) if first else inputs.other
        names = ["pooled"]
        if inputs.has_logits:
            names.append(task)
        if slots:
            names += ["text_slots", "image_slots"]
        outputs = dict(zip(names, joint.run(names, feeds), strict=True))
        return PairOutput(
            outputs.get(task),
            outputs["pooled"],
            outputs.get("text_slots"),
            outputs.get("image_slots"),
        )

    def warm(self, _: Iterable[Plan]) -> None:
        """Prepare runs of `embed`; on a GPU they are recorded."""
        super().warm([()])

    def _zero_pooled(self, batch: int) -> Float:
        """Return zeros (B, P) in place of the pooled output of a first image."""
        width = self._graphs[1].inputs["other"][1]
        assert isinstance(width, int)
        return np.zeros((batch, width), dtype=np.float32)
