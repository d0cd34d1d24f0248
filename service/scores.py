"""From logits, and from what vectors have in common, to scores."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from tokenfold.bundle.manifest import Scoring
from tokenfold.bundle.tasks import Task
from tokenfold.service.errors import InternalError
from tokenfold.service.scheduling.catalog import Model
from tokenfold.service.vectors import Vector, Vectors

Logits = npt.NDArray[Any]
Scores = npt.NDArray[np.float64]


def scores(model: Model, task: Task, logits: Logits) -> Scores:
    """(classes,) in 0..1: of answers that exclude each other, or of each by itself.

    Raises:
        InternalError: there are numbers that are not finite.
    """
    # A logit alone is no share of anything.
    scoring = "sigmoid" if len(logits) == 1 else model.manifest.scoring(task)
    return _scored(model, logits, scoring)


def _scored(model: Model, logits: Logits, scoring: Scoring) -> Scores:
    if scoring == "sigmoid":
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
    return _ranked(model.labels(task), logits, scores(model, task, logits), top_k, name)


def closest(
    model: Model, image: Vector, texts: Vectors, labels: Sequence[str], top_k: int
) -> list[dict[str, Any]]:
    """The labels whose texts fit an image best, each with its index and score.

    Args:
        image: (width,) of a dual encoder.
        texts: (labels, width).

    Raises:
        InternalError: see `scores`.
    """
    similarity = model.manifest.similarity
    assert similarity is not None  # of every dual encoder
    logits = similarity.scale * (texts @ image) + similarity.bias
    return _ranked(labels, logits, _scored(model, logits, similarity.scores), top_k, "label")


def _ranked(
    labels: Sequence[str], logits: Logits, found: Scores, top_k: int, name: str
) -> list[dict[str, Any]]:
    # Stable: equal scores keep the order of their classes.
    order = (-logits).argsort(kind="stable")[:top_k].tolist()
    return [{name: labels[i], "index": i, "score": round(float(found[i]), 6)} for i in order]


def yes(model: Model, task: Task, logits: Logits) -> float:
    """How likely a text is true of its image: of two labels the second says so.

    Raises:
        InternalError: see `scores`.
    """
    return round(float(scores(model, task, logits)[-1]), 6)
