"""Serve vision transformers with token reduction, at a level chosen per request.

From Python, `tokenfold.open` loads a bundle:

    model = tokenfold.open("bundles/vit-base")
    model.classify("photo.jpg", reduction=0.5)
"""

from __future__ import annotations

from os import PathLike
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tokenfold.inference.predictor import Predictor
    from tokenfold.runtime.graph import Device

__all__ = ["open"]


def open(bundle: str | PathLike[str], *, device: Device = "cpu") -> Predictor:
    """Open a bundle for inference; see `tokenfold.inference.predictor.open_bundle`."""
    # Here, so that the command line starts without ONNX Runtime.
    from tokenfold.inference.predictor import open_bundle

    return open_bundle(bundle, device=device)
