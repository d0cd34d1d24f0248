"""A dual encoder in PyTorch, called as the sessions of its graphs are."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from tokenfold.bundle.preprocess import Pixels
from tokenfold.bundle.workload import Method
from tokenfold.export.matchers import matchers
from tokenfold.export.verify import normalised
from tokenfold.models.checkpoints.checkpoint import DualCheckpoint
from tokenfold.runtime.dual import Float, ImageVectors, Int


class Reference:
    """The network of a checkpoint; see `tokenfold.runtime.dual.DualSession` for its methods."""

    def __init__(self, checkpoint: DualCheckpoint, method: Method, *, proportional: bool) -> None:
        """Args:
        method: by which the layers of the image tower reduce.
        proportional: whether attention counts sizes.
        """
        self._model = checkpoint.model
        self._preprocess = checkpoint.preprocess
        self._matchers = matchers(method, checkpoint.model.config.image)
        self._proportional = proportional

    def embed_images(
        self, images: Pixels, plan: Sequence[int], *, slots: bool = False
    ) -> ImageVectors:
        return self.embedded(normalised(images, self._preprocess), plan, slots=slots)

    def embedded(
        self, images: torch.Tensor, plan: Sequence[int], *, slots: bool = False
    ) -> ImageVectors:
        """The same of images that are normalised already, (B, 3, H, W)."""
        # Without a plan the network is the plain one: no sizes in the attention.
        counts = plan if any(plan) else None
        with torch.inference_mode():
            out = self._model.image(images, counts, self._matchers, proportional=self._proportional)
            vectors = torch.nn.functional.normalize(out.logits, dim=-1)
        return ImageVectors(vectors.numpy(), out.slots.numpy() if slots else None)

    def embed_texts(self, ids: Int, size: Float) -> Float:
        with torch.inference_mode():
            vectors = self._model.embed_texts(torch.from_numpy(ids), torch.from_numpy(size))
        found: Float = vectors.numpy()
        return found
