"""Answers of a question-answering head, in the order of its logits.

The same 3129 answers of VQAv2 come in three orders: that of `id2label` on the hub; that of the
official dictionary, which lacks the empty answer with id 125; and PuMer's, which is alphabetical. A
wrong order gives plausible but wrong answers, so none is assumed: the order comes from the
checkpoint or from a file beside it.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tokenfold.models.checkpoints.checkpoint import CheckpointError, numbered_labels

FILES = (
    "answers.json", "answers.txt",
    "vqa_dict.json",  # official ViLT
    "vqa2_label2ans.json", "vqa2_ans2label.json",  # PuMer
    "label2ans.json", "ans2label.json", "id2label.json", "vqa2-id2label.json",
)  # fmt: skip

# Up to this many answers may be in alphabetical order by chance.
MAX_CHANCE_ORDER = 20
NUMBERED = re.compile(r"LABEL_\d+")

log = logging.getLogger(__name__)


def from_config(config: Mapping[str, Any], classes: int, where: str) -> tuple[str, ...] | None:
    """Return the answers of `id2label`; None if it is missing or only numbers the classes.

    Args:
        config: content of `config.json`.
        where: the file, for messages.

    Raises:
        CheckpointError: `id2label` does not name every class exactly once.
    """
    names = config.get("id2label")
    if names is None:
        return None
    if not isinstance(names, dict):
        raise CheckpointError(f"{where}: id2label is not an object")
    if all(NUMBERED.fullmatch(str(name)) for name in names.values()):
        return None
    return _by_id(names, classes, f"{where}: id2label")


def from_folder(folder: Path, classes: int, *, alphabetical: bool) -> tuple[str, ...]:
    """Return the answers of a file in the folder; numbered labels if there is no such file.

    Args:
        alphabetical: whether the network's answers are in alphabetical order, as PuMer's are. The
            answers of the file are then sorted; otherwise a file in alphabetical order belongs to
            another network.

    Raises:
        CheckpointError: files contradict each other, or do not fit the network.
    """
    answers_by_file: dict[str, tuple[str, ...]] = {}
    for name in FILES:
        if (folder / name).is_file():
            answers_by_file[name] = _ordered(folder / name, classes, alphabetical)
    if not answers_by_file:
        log.info(
            "%s: no file of answers (%s): the labels are LABEL_0 to LABEL_%d",
            folder,
            ", ".join(FILES),
            classes - 1,
        )
        return numbered_labels(classes)
    if len(set(answers_by_file.values())) > 1:
        raise CheckpointError(f"{folder}: {' and '.join(answers_by_file)} have different answers")
    return next(iter(answers_by_file.values()))


def _ordered(file: Path, classes: int, alphabetical: bool) -> tuple[str, ...]:
    answers = read(file, classes)
    in_order = tuple(sorted(answers))
    if alphabetical and answers != in_order:
        log.info("%s: sorted the answers alphabetically, as PuMer's are", file)
        return in_order
    if not alphabetical and answers == in_order and classes > MAX_CHANCE_ORDER:
        raise CheckpointError(
            f"{file}: the answers are in alphabetical order, which only PuMer's networks have"
        )
    return answers


def read(file: Path, classes: int) -> tuple[str, ...]:
    """Read a file of answers.

    A text file has one answer per line. A JSON file has a list of answers, or an object from ids to
    answers or from answers to ids. The object may be nested under `id2answer` or `id2label`, and
    may lack the empty answer.

    Raises:
        CheckpointError: the file has another form, or another number of answers than `classes`.
    """
    try:
        text = file.read_text(encoding="utf-8")
        content = text.splitlines() if file.suffix == ".txt" else json.loads(text)
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{file}: {error}") from error
    if isinstance(content, dict):
        for key in ("id2answer", "id2label"):
            if isinstance(content.get(key), dict):
                content = content[key]
        if content and all(type(value) is int for value in content.values()):
            if len(set(content.values())) != len(content):
                raise CheckpointError(f"{file}: several answers have the same id")
            content = {str(index): answer for answer, index in content.items()}
        return _by_id(content, classes, str(file))
    if not isinstance(content, list) or not all(isinstance(name, str) for name in content):
        raise CheckpointError(
            f"{file}: is neither a list of answers nor an object of ids and answers"
        )
    return _by_id({str(index): name for index, name in enumerate(content)}, classes, str(file))


def _by_id(names: Mapping[str, Any], classes: int, where: str) -> tuple[str, ...]:
    """Return the answers in the order of their ids."""
    ids = [str(index) for index in range(classes)]
    missing = sorted(set(ids) - names.keys(), key=int)
    if names.keys() - set(ids):
        raise CheckpointError(f"{where} has {len(names)} answers, not {classes}")
    if missing and (len(missing) > 1 or missing[0] == ids[-1] or "" in names.values()):
        raise CheckpointError(
            f"{where} has {len(names)} answers, not {classes}; the first missing id is {missing[0]}"
        )
    if not all(isinstance(name, str) for name in names.values()):
        raise CheckpointError(f"{where}: an answer is not a string")
    answers = tuple(str(names.get(index, "")) for index in ids)
    if len(set(answers)) != classes:
        raise CheckpointError(f"{where}: duplicate answers")
    return answers
