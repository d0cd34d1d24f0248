"""Sessions of dual encoders: images and texts to vectors. Independent of torch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from tokenfold.bundle.bundle import Bundle
from tokenfold.bundle.preprocess import Pixels
from tokenfold.runtime.graph import Feeds
from tokenfold.runtime.session import BaseSession

Float = npt.NDArray[np.float32]
Int = npt.NDArray[np.int64]


class ImageVectors(NamedTuple):
    """Unit vectors (B, width) float32, and slots (B, N) int64 if they were requested."""

    vectors: Float
    slots: Int | None


class Embedder(Protocol):
    """A dual encoder: `DualSession`, or the network in PyTorch that its graphs came from."""

    def embed_images(
        self, images: Pixels, plan: Sequence[int], *, slots: bool = False
    ) -> ImageVectors:
        """Embed a batch of images.

        Args:
            images: (B, H, W, 3) uint8, of the bundle's input size.
            plan: tokens to remove in each layer.
            slots: whether to return the composed slots too.
        """
        ...

    def embed_texts(self, ids: Int, size: Float) -> Float:
        """Embed a batch of texts as unit vectors (B, width) float32.

        Args:
            ids: (B, T), T at most the maximum tokens of a text.
            size: (B, T), 1 for a token and 0 for padding, which is at the end. Padding does not
                change a vector; in int8 graphs the other texts of a batch change it slightly.
        """
        ...


class DualSession(BaseSession):
    """The two graphs of a dual encoder; the inherited methods refer to that of the images."""

    @staticmethod
    def _paths(bundle: Bundle) -> Sequence[Path]:
        return bundle.image, bundle.text

    def embed_images(
        self, images: Pixels, plan: Sequence[int], *, slots: bool = False
    ) -> ImageVectors:
        """Embed a batch of images; see `Embedder`."""
        feeds: Feeds = {"image": images, "plan": np.asarray(plan, dtype=np.int64)}
        names = ["vector", "slots"] if slots else ["vector"]
        outputs = self.graph.run(names, feeds)
        return ImageVectors(outputs[0], outputs[1] if slots else None)

    def embed_texts(self, ids: Int, size: Float) -> Float:
        """Embed a batch of texts; see `Embedder`."""
        feeds: Feeds = {"input_ids": ids, "text_size": size}
        vectors: Float = self._graphs[1].run(["vector"], feeds)[0]
        return vectors
