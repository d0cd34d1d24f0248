"""Images to send."""

from __future__ import annotations

import io

import numpy as np
import numpy.typing as npt
from PIL import Image


def synthetic(height: int, width: int, seed: int = 0) -> npt.NDArray[np.uint8]:
    """A smooth random picture, (height, width, 3) uint8: it compresses about as well as a photo."""
    random = np.random.default_rng(seed)
    coarse = random.integers(0, 256, (max(1, height // 8), max(1, width // 8), 3), dtype=np.uint8)
    smooth = Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)
    noise = random.normal(0.0, 6.0, (height, width, 3))
    return np.clip(np.asarray(smooth) + noise, 0, 255).astype(np.uint8)


def jpeg(pixels: npt.NDArray[np.uint8], quality: int = 90) -> bytes:
    """The JPEG file of (height, width, 3) uint8 pixels."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=quality)
    return file.getvalue()
