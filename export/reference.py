"""PyTorch networks with the methods of sessions, as references for verification."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from tokenfold.bundle.pair_workload import PairWorkload
from tokenfold.bundle.preprocess import Pixels, Preprocess
from tokenfold.bundle.workload import Method
from tokenfold.export.matchers import matcher_counts, matchers, pair_matchers
from tokenfold.models.checkpoints.checkpoint import Checkpoint, DualCheckpoint, PairCheckpoint
from tokenfold.models.networks.pair import PairReduction
from tokenfold.runtime.dual import ImageVectors
from tokenfold.runtime.pair import Float, Int, PairInputs, PairOutput, PairRunner
from tokenfold.runtime.session import Output, Session


def normalised(images: Pixels, preprocess: Preprocess) -> torch.Tensor:
    """Convert pixels (B, H, W, 3) uint8 to a network's input (B, 3, H, W) float32."""
    mean, std = (
        torch.tensor(values)[:, None, None] for values in (preprocess.mean, preprocess.std)
    )
    return (torch.tensor(images).permute(0, 3, 1, 2) / 255 - mean) / std


class ClassifierReference:
    """An image classifier in PyTorch; see `tokenfold.runtime.session.Session`."""

    def __init__(self, checkpoint: Checkpoint, method: Method, *, proportional: bool) -> None:
        """Wrap the network.

        Args:
            method: chooses the matchers of the layers.
            proportional: whether attention counts token sizes.
        """
        self._model = checkpoint.model
        self._preprocess = checkpoint.preprocess
        self._matchers = matchers(method, checkpoint.model.config)
        self._proportional = proportional

    def run(self, images: Pixels, plan: Sequence[int], *, slots: bool = False) -> Output:
        # Without a plan, attention ignores sizes, as in the network that was trained.
        counts = plan if any(plan) else None
        with torch.inference_mode():
            x = normalised(images, self._preprocess)
            out = self._model(x, counts, self._matchers, proportional=self._proportional)
        return Output(out.logits.numpy(), out.slots.numpy() if slots else None)


ClassifierNetwork = ClassifierReference | Session


class DualReference:
    """A dual encoder in PyTorch; see `tokenfold.runtime.dual.DualSession`."""

    def __init__(self, checkpoint: DualCheckpoint, method: Method, *, proportional: bool) -> None:
        """Wrap the network.

        Args:
            method: chooses the matchers of the image tower's layers.
            proportional: whether attention counts token sizes.
        """
        self._model = checkpoint.model
        self._preprocess = checkpoint.preprocess
        self._matchers = matchers(method, checkpoint.model.config.image)
        self._proportional = proportional

    def embed_images(
        self, images: Pixels, plan: Sequence[int], *, slots: bool = False
    ) -> ImageVectors:
        return self.embed_normalised(normalised(images, self._preprocess), plan, slots=slots)

    def embed_normalised(
        self, images: torch.Tensor, plan: Sequence[int], *, slots: bool = False
    ) -> ImageVectors:
        """Embed images (B, 3, H, W) that are normalised already."""
        # Without a plan, attention ignores sizes, as in the network that was trained.
        counts = plan if any(plan) else None
        with torch.inference_mode():
            out = self._model.image(images, counts, self._matchers, proportional=self._proportional)
            vectors = torch.nn.functional.normalize(out.logits, dim=-1)
        return ImageVectors(vectors.numpy(), out.slots.numpy() if slots else None)

    def embed_texts(self, ids: Int, size: Float) -> Float:
        with torch.inference_mode():
            vectors = self._model.embed_texts(torch.from_numpy(ids), torch.from_numpy(size))
        array: Float = vectors.numpy()
        return array


class PairReference(PairRunner):
    """An image-text network in PyTorch; see `tokenfold.runtime.pair.PairSession`."""

    def __init__(
        self, checkpoint: PairCheckpoint, workload: PairWorkload, *, weighted: bool
    ) -> None:
        """Wrap the network.

        Args:
            workload: has the method that chooses the matchers of the layers.
            weighted: whether tokens merge by size and attention counts sizes.
        """
        self._model = checkpoint.model
        self._preprocess = checkpoint.preprocess
        self._workload = workload
        self._matchers = pair_matchers(workload)
        self._weighted = weighted

    def embed(self, images: Pixels) -> Float:
        with torch.inference_mode():
            return self.embed_normalised(normalised(images, self._preprocess)).numpy()

    def embed_normalised(self, images: torch.Tensor) -> torch.Tensor:
        """Convert normalised images (B, 3, H, W) to image tokens (B, I, D)."""
        side = self._model.config.patch_size
        height, width = images.shape[2:]
        patches = self._model.patch_embed(images)
        return self._model.embed_image(patches, (height // side, width // side))

    def _fuse(self, inputs: PairInputs, slots: bool) -> PairOutput:
        plan, other = inputs.plan, inputs.other
        reduction = None
        # With a plan of zeros PuMer's layers would still compute the importance of tokens.
        unreduced = self._workload.method == "pumer" and not any(plan)
        counts = None if unreduced else matcher_counts(self._workload, plan)
        if counts is not None and self._matchers is not None:
            reduction = PairReduction(counts, self._matchers, self._weighted)
        with torch.inference_mode():
            fused = self._model.fuse(
                torch.from_numpy(inputs.image_tokens),
                torch.from_numpy(inputs.input_ids),
                torch.from_numpy(inputs.text_size),
                second=other is not None,
                reduction=reduction,
            )
            head_input = fused.pooled
            if other is not None:
                head_input = torch.cat([torch.from_numpy(other), head_input], dim=-1)
            logits = None
            if inputs.has_logits:
                logits = self._model.heads.logits(head_input, inputs.task).numpy()
        return PairOutput(
            logits,
            fused.pooled.numpy(),
            fused.text.numpy() if slots else None,
            fused.image.numpy() if slots else None,
        )
