"""Synthetic images for load tests."""

from __future__ import annotations

import io

import numpy as np
import numpy.typing as npt
from PIL import Image


def synthetic(height: int, width: int, seed: int = 0) -> npt.NDArray[np.uint8]:
    """Return a smooth random image, (height, width, 3) uint8, that compresses like a photo."""
    random = np.random.default_rng(seed)
    coarse = random.integers(0, 256, (max(1, height // 8), max(1, width // 8), 3), dtype=np.uint8)
    smooth = Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)
    noise = random.normal(0.0, 6.0, (height, width, 3))
    return np.clip(np.asarray(smooth) + noise, 0, 255).astype(np.uint8)


def jpeg(pixels: npt.NDArray[np.uint8], quality: int = 90) -> bytes:
    """Encode (height, width, 3) uint8 pixels as a JPEG file."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=quality)
    return file.getvalue()
