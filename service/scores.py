"""From logits to scores."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from models.tasks import Task
from service.catalog import Model
from service.errors import InternalError

Logits = npt.NDArray[Any]
Scores = npt.NDArray[np.float64]


def scores(model: Model, task: Task, logits: Logits) -> Scores:
    """(classes,) in 0..1: of answers that exclude each other, or of each by itself.

    Raises:
        InternalError: there are numbers that are not finite.
    """
    # A logit alone is no share of anything.
    if len(logits) == 1 or model.manifest.scoring(task) == "sigmoid":
        # Half a tanh neither overflows nor warns.
        found: Scores = 0.5 + 0.5 * np.tanh(0.5 * logits.astype(np.float64))
        total = float(found.sum()) if np.isfinite(logits).all() else math.nan
    else:
        found = np.exp(logits - logits.max(), dtype=np.float64)
        total = float(found.sum())
        found /= total
    if not math.isfinite(total):
        raise InternalError(f"{model.name} computed no finite numbers for this item.")
    return found


def best(
    model: Model, task: Task, logits: Logits, top_k: int, *, name: str = "label"
) -> list[dict[str, Any]]:
    """The likeliest classes, each with its label, index and score.

    Args:
        name: of the label's field.

    Raises:
        InternalError: see `scores`.
    """
    found = scores(model, task, logits)
    # Stable: equal scores keep the order of their classes.
    order = (-logits).argsort(kind="stable")[:top_k].tolist()
    labels = model.labels(task)
    return [{name: labels[i], "index": i, "score": round(float(found[i]), 6)} for i in order]


def yes(model: Model, task: Task, logits: Logits) -> float:
    """How likely a text is true of its image: of two labels the second says so.

    Raises:
        InternalError: see `scores`.
    """
    return round(float(scores(model, task, logits)[-1]), 6)
