"""Heads of ViLT and METER by their published names, and the labels of their logits."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from torch import Tensor

from tokenfold.bundle.tasks import PairTask
from tokenfold.models.checkpoints import answers
from tokenfold.models.checkpoints.checkpoint import CheckpointError
from tokenfold.models.checkpoints.weights import NameTable, add_layer, weight_shape
from tokenfold.models.networks.pair import HeadConfig

# By the name of the head's last layer. `rank_output` comes first: it was initialised from
# `itm_score`, which retrieval then no longer uses.
HEADS: dict[str, tuple[PairTask, str]] = {
    "vqa_classifier.3": ("vqa", "vqa_classifier"),
    "snli_classifier.3": ("entail", "snli_classifier"),
    "ve_classifier.3": ("entail", "ve_classifier"),
    "nlvr2_classifier.3": ("reason", "nlvr2_classifier"),
    "rank_output": ("match", "rank_output"),
    "itm_score.fc": ("match", "itm_score.fc"),
}
LABELS: dict[PairTask, tuple[str, ...]] = {
    "entail": ("contradiction", "neutral", "entailment"),
    "reason": ("false", "true"),
    "match": ("no match", "match"),
}

# Heads of pre-training.
UNUSED = ("mlm_score.", "mpp_score.")


def find_heads(weights: Mapping[str, Tensor]) -> dict[PairTask, str]:
    """Return the name of the head of each task that the weights have a head for.

    Raises:
        CheckpointError: there is no such head.
    """
    head_names: dict[PairTask, str] = {}
    for last, (task, head) in HEADS.items():
        if f"{last}.weight" in weights:
            head_names.setdefault(task, head)
    if not head_names:
        raise CheckpointError(
            "the weights have no head of a task, "
            f"{' or '.join(f'{name}.weight' for name in HEADS)}; a network that was only "
            "pre-trained cannot be served"
        )
    return head_names


def unused_prefixes(head_names: Mapping[PairTask, str]) -> tuple[str, ...]:
    """Return the prefixes of the weights of unused heads."""
    return (*UNUSED, "itm_score.") if head_names.get("match") == "rank_output" else UNUSED


def head_config(weights: Mapping[str, Tensor], task: PairTask, head: str) -> HeadConfig:
    """Return the configuration of a head, from its weights."""
    if f"{head}.weight" in weights:
        classes, hidden = weight_shape(weights, f"{head}.weight", 2)[0], 0
    else:
        classes = weight_shape(weights, f"{head}.3.weight", 2)[0]
        hidden = weight_shape(weights, f"{head}.0.weight", 2)[0]
    # Answers are trained as independent labels, and a ranking head has a single score.
    independent = task == "vqa" or classes == 1
    scores: Literal["softmax", "sigmoid"] = "sigmoid" if independent else "softmax"
    return HeadConfig(classes=classes, hidden=hidden, scores=scores)


def add_names(
    table: NameTable, heads: Mapping[PairTask, HeadConfig], head_names: Mapping[PairTask, str]
) -> None:
    """Add the weights of the heads to a name table."""
    for task, head in heads.items():
        if not head.hidden:
            add_layer(table, f"heads.{task}", head_names[task])
            continue
        for part in ("0", "1", "3"):  # linear, norm, linear; 2 is the activation
            add_layer(table, f"heads.{task}.{part}", f"{head_names[task]}.{part}")


def labels(
    heads: Mapping[PairTask, HeadConfig],
    config: Mapping[str, Any],
    folder: Path,
    *,
    alphabetical: bool,
) -> dict[PairTask, tuple[str, ...]]:
    """Return the labels of each head, in the published order.

    Args:
        config: content of the checkpoint's `config.json`; empty without one.
        folder: folder that may have a file of answers.
        alphabetical: see `answers.from_folder`.

    Raises:
        CheckpointError: the labels do not fit a head.
    """
    labels_by_task: dict[PairTask, tuple[str, ...]] = {}
    for task, head in heads.items():
        if task == "vqa":
            labels_by_task[task] = answers.from_config(
                config, head.classes, "config.json"
            ) or answers.from_folder(folder, head.classes, alphabetical=alphabetical)
        elif task == "match" and head.classes == 1:
            labels_by_task[task] = ()
        elif len(LABELS[task]) == head.classes:
            labels_by_task[task] = LABELS[task]
        else:
            raise CheckpointError(
                f"the head of {task} has {head.classes} classes, not {len(LABELS[task])}"
            )
    return labels_by_task
