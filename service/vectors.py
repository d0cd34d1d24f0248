"""Vectors of dual encoders, as they leave a model and as they are answered."""

from __future__ import annotations

from base64 import b64encode
from typing import Literal

import numpy as np
import numpy.typing as npt

from tokenfold.service.errors import InternalError
from tokenfold.service.scheduling.backends.backend import Sample
from tokenfold.service.scheduling.catalog import Model

Vector = npt.NDArray[np.float32]
Vectors = npt.NDArray[np.float32]
"""(items, width)."""
Encoding = Literal["float", "base64"]

# At the size that these numbers have, about what a float32 tells apart.
_DECIMALS = 9


def vector(model: Model, output: Sample) -> Vector:
    """An item's vector, (width,) of length 1.

    Raises:
        InternalError: there are numbers that are not finite.
    """
    found: Vector = output["vector"]
    if not np.isfinite(found).all():
        raise InternalError(f"{model.name} computed no finite numbers for this item.")
    return found


def written(found: Vector, encoding: Encoding) -> list[float] | str:
    """A vector in JSON: as numbers, or exactly, as base64 of little-endian float32."""
    if encoding == "base64":
        return b64encode(found.astype("<f4").tobytes()).decode()
    numbers: list[float] = found.astype(np.float64).round(_DECIMALS).tolist()
    return numbers
