"""Model outputs as scores, ranked labels and vectors."""

from __future__ import annotations

import math
from base64 import b64encode
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from tokenfold.bundle.manifest import Scoring, Similarity
from tokenfold.bundle.tasks import Task
from tokenfold.inference.backend import Sample
from tokenfold.inference.errors import InternalError
from tokenfold.inference.model import Model

Logits = npt.NDArray[Any]
Scores = npt.NDArray[np.float64]
Vector = npt.NDArray[np.float32]
"""(width,) of length 1."""
Vectors = npt.NDArray[np.float32]
"""(items, width), each of length 1."""
Encoding = Literal["float", "base64"]

_DECIMALS = 9  # about the resolution of float32 for the components of a unit vector


def scores(model: Model, task: Task, logits: Logits) -> Scores:
    """Return the scores of a task's labels.

    Args:
        model: the model.
        task: one of its tasks.
        logits: (classes,).

    Returns:
        (classes,), 0 to 1: a distribution, or independent probabilities, as the manifest says.

    Raises:
        InternalError: the logits are not finite.
    """
    # The softmax of a single logit would be 1, whatever the logit.
    scoring = "sigmoid" if len(logits) == 1 else model.manifest.scoring(task)
    return _scored(model, logits, scoring)


def best(
    model: Model, task: Task, logits: Logits, top_k: int, *, name: str = "label"
) -> list[dict[str, Any]]:
    """Return the labels of the highest scores, each with its index and score.

    Args:
        model: the model.
        task: one of its tasks.
        logits: (classes,).
        top_k: number of labels.
        name: key of the label.

    Raises:
        InternalError: the logits are not finite.
    """
    return _ranked(model.labels(task), logits, scores(model, task, logits), top_k, name)


def closest(
    model: Model, image: Vector, texts: Vectors, labels: Sequence[str], top_k: int
) -> list[dict[str, Any]]:
    """Return the labels whose texts are most similar to an image, each with its index and score.

    Args:
        model: a dual encoder.
        image: (width,).
        texts: (labels, width).
        labels: the labels.
        top_k: number of labels.

    Raises:
        InternalError: the similarities are not finite.
    """
    similarity = similarity_of(model)
    logits = similarity.scale * (texts @ image) + similarity.bias
    return _ranked(labels, logits, _scored(model, logits, similarity.scores), top_k, "label")


def positive(model: Model, task: Task, logits: Logits) -> float:
    """Return the score of the last label: the probability that a text is true of its image.

    Raises:
        InternalError: the logits are not finite.
    """
    return round(float(scores(model, task, logits)[-1]), 6)


def vector(model: Model, output: Sample) -> Vector:
    """Return an item's vector, (width,) of length 1.

    Raises:
        InternalError: the vector is not finite.
    """
    components: Vector = output["vector"]
    if not np.isfinite(components).all():
        raise InternalError(f"{model.name} computed no finite numbers for this item.")
    return components


def written(vector: Vector, encoding: Encoding) -> list[float] | str:
    """Return a vector for JSON: as numbers, or exactly, as base64 of little-endian float32."""
    if encoding == "base64":
        return b64encode(vector.astype("<f4").tobytes()).decode()
    numbers: list[float] = vector.astype(np.float64).round(_DECIMALS).tolist()
    return numbers


def label_texts(model: Model, labels: Sequence[str], template: str | None) -> list[str]:
    """Return the texts that stand for labels in zero-shot classification.

    Args:
        model: a dual encoder.
        labels: the labels.
        template: text of a label, which replaces `{}`; by default the model's.
    """
    pattern = similarity_of(model).template if template is None else template
    return [pattern.replace("{}", label) for label in labels]


def similarity_of(model: Model) -> Similarity:
    """Return how a dual encoder compares its vectors."""
    similarity = model.manifest.similarity
    assert similarity is not None  # checked when the manifest is read
    return similarity


def _scored(model: Model, logits: Logits, scoring: Scoring) -> Scores:
    if scoring == "sigmoid":
        # Half a tanh neither overflows nor warns.
        values: Scores = 0.5 + 0.5 * np.tanh(0.5 * logits.astype(np.float64))
        total = float(values.sum()) if np.isfinite(logits).all() else math.nan
    else:
        values = np.exp(logits - logits.max(), dtype=np.float64)
        total = float(values.sum())
        values /= total
    if not math.isfinite(total):
        raise InternalError(f"{model.name} computed no finite numbers for this item.")
    return values


def _ranked(
    labels: Sequence[str], logits: Logits, values: Scores, top_k: int, name: str
) -> list[dict[str, Any]]:
    # A stable sort: equal scores keep the order of their classes.
    order = (-logits).argsort(kind="stable")[:top_k].tolist()
    return [{name: labels[i], "index": i, "score": round(float(values[i]), 6)} for i in order]
