"""The heads of ViLT and METER by their published names, and what their logits stand for."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from tokenfold.bundle.tasks import PairTask
from tokenfold.models.checkpoints import answers
from tokenfold.models.checkpoints.checkpoint import CheckpointError
from tokenfold.models.checkpoints.weight_names import Names, layer, shape
from tokenfold.models.pair import HeadConfig

# By the name of the head's last layer. `rank_output` comes before `itm_score`, which it was made
# from and which retrieval no longer asks.
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

# Of pre-training.
UNUSED = ("mlm_score.", "mpp_score.")


def find(weights: Mapping[str, Tensor]) -> dict[PairTask, str]:
    """The tasks that there are heads for, and what each head is called.

    Raises:
        CheckpointError: there is none.
    """
    found: dict[PairTask, str] = {}
    for last, (task, head) in HEADS.items():
        if f"{last}.weight" in weights:
            found.setdefault(task, head)
    if not found:
        raise CheckpointError(
            f"the weights have no head of a task: {', '.join(f'{name}.weight' for name in HEADS)}; "
            "one that was only pre-trained answers nothing"
        )
    return found


def unused(found: Mapping[PairTask, str]) -> tuple[str, ...]:
    """What the weights of heads that nothing asks begin with."""
    return (*UNUSED, "itm_score.") if found.get("match") == "rank_output" else UNUSED


def config(weights: Mapping[str, Tensor], task: PairTask, head: str) -> HeadConfig:
    """What the weights of a head show."""
    if f"{head}.weight" in weights:
        classes, hidden = shape(weights, f"{head}.weight", 2)[0], 0
    else:
        classes = shape(weights, f"{head}.3.weight", 2)[0]
        hidden = shape(weights, f"{head}.0.weight", 2)[0]
    # Answers are trained each by itself, and a rank is no choice between classes.
    alone = task == "vqa" or classes == 1
    return HeadConfig(classes=classes, hidden=hidden, scores="sigmoid" if alone else "softmax")


def names(
    table: Names, heads: Mapping[PairTask, HeadConfig], found: Mapping[PairTask, str]
) -> None:
    """Add the weights of the heads to a table."""
    for task, head in heads.items():
        if not head.hidden:
            layer(table, f"heads.{task}", found[task])
            continue
        for part in ("0", "1", "3"):  # linear, norm, linear; 2 is the activation
            layer(table, f"heads.{task}.{part}", f"{found[task]}.{part}")


def labels(
    heads: Mapping[PairTask, HeadConfig],
    description: Mapping[str, Any],
    folder: Path,
    *,
    alphabetical: bool,
) -> dict[PairTask, tuple[str, ...]]:
    """What the logits of each head stand for, in the published order.

    Args:
        description: content of the checkpoint's `config.json`, if it has one.
        folder: where files of answers are looked for.
        alphabetical: see `answers.beside`.

    Raises:
        CheckpointError: it does not fit the head.
    """
    found: dict[PairTask, tuple[str, ...]] = {}
    for task, head in heads.items():
        if task == "vqa":
            given = answers.of_config(description, head.classes, "config.json")
            found[task] = given or answers.beside(folder, head.classes, alphabetical=alphabetical)
        elif task == "match" and head.classes == 1:
            found[task] = ()
        elif len(LABELS[task]) == head.classes:
            found[task] = LABELS[task]
        else:
            raise CheckpointError(f"{head.classes} classes to {task}, not {len(LABELS[task])}")
    return found
