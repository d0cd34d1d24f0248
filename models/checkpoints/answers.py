"""The answers that the logits of a question-answering head stand for.

There are three orders of the same 3129 answers of VQAv2: that of `id2label` on the hub; that of
the official dictionary, which lacks the empty answer, whose id is 125; and PuMer's, alphabetical. A
wrong order gives fluent nonsense, so none is assumed: the checkpoint says it, or a file beside it.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tokenfold.models.checkpoints.checkpoint import CheckpointError

FILES = (
    "answers.json", "answers.txt",
    "vqa_dict.json",  # official ViLT
    "vqa2_label2ans.json", "vqa2_ans2label.json",  # PuMer
    "label2ans.json", "ans2label.json", "id2label.json", "vqa2-id2label.json",
)  # fmt: skip

# Fewer answers than this may be in alphabetical order by chance.
SEVERAL = 20
NUMBERED = re.compile(r"LABEL_\d+")

log = logging.getLogger(__name__)


def of_config(config: Mapping[str, Any], classes: int, where: str) -> tuple[str, ...] | None:
    """What `id2label` says; None where it is missing or only numbers the classes.

    Raises:
        CheckpointError: it does not name every class once.
    """
    names = config.get("id2label")
    if names is None:
        return None
    if not isinstance(names, dict):
        raise CheckpointError(f"{where}: id2label is no object")
    if all(NUMBERED.fullmatch(str(name)) for name in names.values()):
        return None
    return _placed(names, classes, f"{where}: id2label")


def beside(folder: Path, classes: int, *, alphabetical: bool) -> tuple[str, ...]:
    """What a file in the folder says; where there is none the classes are numbered.

    Args:
        alphabetical: whether the network's answers are in that order, as PuMer's are. Then those
            of the file are put into it; else a file in that order is of another network.

    Raises:
        CheckpointError: files contradict each other, or do not fit the network.
    """
    found: dict[str, tuple[str, ...]] = {}
    for name in FILES:
        if (folder / name).is_file():
            found[name] = _ordered(folder / name, classes, alphabetical)
    if not found:
        log.info(
            "%s: no file of answers (%s): they are called by their numbers, as LABEL_0",
            folder,
            ", ".join(FILES),
        )
        return tuple(f"LABEL_{index}" for index in range(classes))
    if len(set(found.values())) > 1:
        raise CheckpointError(f"{folder}: {' and '.join(found)} do not say the same answers")
    return next(iter(found.values()))


def _ordered(file: Path, classes: int, alphabetical: bool) -> tuple[str, ...]:
    answers = read(file, classes)
    in_order = tuple(sorted(answers))
    if alphabetical and answers != in_order:
        log.info("%s: its answers were put into alphabetical order, which PuMer's are in", file)
        return in_order
    if not alphabetical and answers == in_order and classes > SEVERAL:
        raise CheckpointError(
            f"{file}: the answers are in alphabetical order: PuMer's, which this network's are not"
        )
    return answers


def read(file: Path, classes: int) -> tuple[str, ...]:
    """A file of answers.

    A text has one a line. JSON has a list; or an object from ids to answers or from answers to ids,
    itself perhaps under `id2answer` or `id2label`, that may lack the empty answer.

    Raises:
        CheckpointError: it is none of these, or not of so many classes.
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
            content = {str(at): answer for answer, at in content.items()}
        return _placed(content, classes, str(file))
    if not isinstance(content, list) or not all(isinstance(name, str) for name in content):
        raise CheckpointError(f"{file}: holds neither a list of answers nor ids with answers")
    return _placed({str(at): name for at, name in enumerate(content)}, classes, str(file))


def _placed(names: Mapping[str, Any], classes: int, where: str) -> tuple[str, ...]:
    """Answers by id, in the order of the ids."""
    wanted = [str(index) for index in range(classes)]
    missing = sorted(set(wanted) - names.keys(), key=int)
    if names.keys() - set(wanted):
        raise CheckpointError(f"{where} has {len(names)} answers, not {classes}")
    if missing and (len(missing) > 1 or missing[0] == wanted[-1] or "" in names.values()):
        raise CheckpointError(
            f"{where} has {len(names)} answers, not {classes}; the first without is {missing[0]}"
        )
    if not all(isinstance(name, str) for name in names.values()):
        raise CheckpointError(f"{where}: an answer is no text")
    answers = tuple(str(names.get(at, "")) for at in wanted)
    if len(set(answers)) != classes:
        raise CheckpointError(f"{where}: an answer is there twice")
    return answers
