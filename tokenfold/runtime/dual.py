"""Running the graphs of a dual encoder. No torch in here."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from tokenfold.bundle.bundle import Bundle
from tokenfold.bundle.preprocess import Pixels
from tokenfold.runtime import hugepages
from tokenfold.runtime.session import BaseSession, Device, Feeds, Opening

Float = npt.NDArray[np.float32]
Int = npt.NDArray[np.int64]


class ImageVectors(NamedTuple):
    """Vectors (B, width) float32 of length 1, and slots (B, N) int64 where they were asked for."""

    vectors: Float
    slots: Int | None


class Embedder(Protocol):
    """Graphs, or the network in PyTorch that they came from; see `DualSession`."""

    def embed_images(
        self, images: Pixels, plan: Sequence[int], *, slots: bool = False
    ) -> ImageVectors:
        """Images to vectors."""
        ...

    def embed_texts(self, ids: Int, size: Float) -> Float:
        """Texts to vectors."""
        ...


class DualSession(BaseSession):
    """The two graphs of a bundle: one copy of the weights, any number of threads at once.

    What it inherits is of the images' graph.
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
        super().__init__(bundle.image, bundle, Opening(device, threads, native, engines, static))
        self._text = self._another(bundle.text)
        if device == "cpu":
            hugepages.collapse()

    def embed_images(
        self, images: Pixels, plan: Sequence[int], *, slots: bool = False
    ) -> ImageVectors:
        """Make vectors of a batch of images.

        Args:
            images: (B, H, W, 3) uint8, of the bundle's input size.
            plan: tokens each layer removes.
            slots: whether to return the composed slots too.
        """
        feeds: Feeds = {"image": images, "plan": np.asarray(plan, dtype=np.int64)}
        names = ["vector", "slots"] if slots else ["vector"]
        found = self.graph.run(names, feeds)
        return ImageVectors(found[0], found[1] if slots else None)

    def embed_texts(self, ids: Int, size: Float) -> Float:
        """Make vectors (B, width) float32 of length 1 of a batch of texts.

        Args:
            ids: (B, T), of any T up to the most tokens that the network takes.
            size: (B, T), 1 for a token and 0 for padding, which is at the end and changes nothing;
                of int8 graphs whatever shares a run moves a vector a little.
        """
        feeds: Feeds = {"input_ids": ids, "text_size": size}
        vectors: Float = self._text.run(["vector"], feeds)[0]
        return vectors

    def close(self) -> None:
        """Give back what is on a GPU; later runs fail."""
        super().close()
        self._text.close()
