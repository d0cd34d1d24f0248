"""Quality of image-text networks: items, and the shares of right answers to them."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests import tiny
from tests.export.quality import manifests
from tokenfold.bundle.manifest import TextSpec
from tokenfold.bundle.tasks import PairTask
from tokenfold.export.quality.pair import GENERIC, Item, Items, measure
from tokenfold.export.quality.photos import DataError
from tokenfold.export.reference import PairReference
from tokenfold.export.stages import Workers
from tokenfold.export.verification.inputs import random_images

LABELS: dict[PairTask, tuple[str, ...]] = {
    "vqa": ("red", "blue"),
    "reason": ("false", "true"),
    "match": (),
}


def folder(path: Path, *lines: Any, name: str = "items.jsonl") -> Path:
    path.mkdir(parents=True, exist_ok=True)
    for at, pixels in enumerate(random_images((20, 30), 3)):
        Image.fromarray(pixels).save(path / f"{at}.png")
    if lines:
        texts = [line if isinstance(line, str) else json.dumps(line) for line in lines]
        (path / name).write_text("\n".join(texts))
    return path


def line(task: str, images: list[str], answer: str, **more: Any) -> dict[str, Any]:
    return {"task": task, "images": images, "text": "what?", "answer": answer, **more}


def test_items_name_their_images_and_answers(tmp_path: Path) -> None:
    lines = [
        line("vqa", ["1.png"], "blue", family="colour"),
        "",
        line("reason", ["2.png", "0.png"], "true"),
        # An answer outside the vocabulary, which is never right.
        line("vqa", ["0.png"], "green"),
        # A task that the network lacks, and one whose head only ranks.
        line("entail", ["0.png"], "neutral"),
        line("match", ["0.png"], "match"),
    ]
    items = Items(folder(tmp_path / "a", *lines), LABELS)
    assert items.metric == "accuracy"
    assert items.items == [
        Item("vqa", (1,), "what?", 1),
        Item("reason", (2, 0), "what?", 1),
        Item("vqa", (0,), "what?", -1),
    ]
    archive = tmp_path / "a.zip"
    with zipfile.ZipFile(archive, "w") as file:
        for path in (tmp_path / "a").iterdir():
            file.write(path, f"held-out/{path.name}")
    assert Items(archive, LABELS).items == items.items


def test_without_answers_generic_texts_are_used(tmp_path: Path) -> None:
    items = Items(folder(tmp_path / "a"), LABELS)
    assert items.metric == "agreement"
    assert len(items) == 3 * (len(GENERIC["vqa"]) + len(GENERIC["reason"]))
    assert {item.images for item in items.items if item.task == "reason"} == {
        (0, 1),
        (1, 2),
        (2, 0),
    }
    assert {item.answer for item in items.items} == {None}


@pytest.mark.parametrize(
    ("wrong_line", "message"),
    [
        ("{", "line 1"),
        (line("sing", ["0.png"], "red"), "line 1"),
        (line("vqa", ["9.png"], "red"), "line 1: 9.png is missing"),
        (line("vqa", ["0.png", "1.png"], "red"), r"vqa needs 1 image\(s\), not 2"),
        (line("reason", ["0.png"], "true"), r"reason needs 2 image\(s\), not 1"),
        (line("reason", ["0.png", "1.png"], "maybe"), "'maybe' is not among false, true"),
        (line("vqa", ["0.png"], "red") | {"text": " "}, "line 1: the text is empty"),
        (line("entail", ["0.png"], "neutral"), "it has no item of the tasks vqa"),
    ],
)
def test_wrong_items_are_named(tmp_path: Path, wrong_line: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        Items(folder(tmp_path / "a", wrong_line), LABELS)


def test_two_lists_of_items_are_refused(tmp_path: Path) -> None:
    folder(tmp_path / "a", line("vqa", ["0.png"], "red"))
    folder(tmp_path / "a" / "b", line("vqa", ["0.png"], "red"))
    with pytest.raises(DataError, match="two files"):
        Items(tmp_path / "a", LABELS)


def test_shares_are_of_each_task_and_level(tmp_path: Path) -> None:
    checkpoint = tiny.pair_checkpoint()
    workload = checkpoint.model.config.workload("pumer")
    plans = {"exact": workload.unreduced, "half": workload.plan_at((0.2, 0.5, 0.4))}
    manifest = manifests.manifest(
        "pair",
        workload,
        plans,
        tasks=dict(checkpoint.labels),
        text=TextSpec(most_tokens=12),
        preprocess=checkpoint.preprocess,
    )
    network = PairReference(checkpoint, workload, weighted=True)
    # Unlabelled: the network agrees with itself where nothing is reduced.
    items = Items(folder(tmp_path / "a"), checkpoint.labels)
    steps: list[None] = []
    measured = measure(
        manifest,
        network,
        items,
        checkpoint.text,
        unreduced=network,
        workers=Workers(2, lambda: steps.append(None)),
    )
    assert len(steps) == len(items)
    assert set(measured) == set(plans)
    exact = measured["exact"].quality
    # A ranking head has no answer to agree on.
    assert set(exact) == {"vqa", "entail", "reason"}
    assert {quality.value for quality in exact.values()} == {1.0}
    assert measured["half"].quality["vqa"].samples == 3 * len(GENERIC["vqa"])
    # Labelled by hand: two of three are right.
    answers = []
    for at in range(3):
        image = network.embed(items.photos.pixels(at, checkpoint.preprocess)[None])
        ids = checkpoint.text.encode("what?").ids[None]
        size = np.ones(ids.shape, dtype=np.float32)
        logits = network.fuse(image, ids, size, workload.unreduced, task="vqa").logits
        assert logits is not None
        answers.append(tiny.LABELS[int(logits.argmax())])
    wrong = next(label for label in tiny.LABELS if label != answers[2])
    lines = [line("vqa", [f"{at}.png"], answer) for at, answer in enumerate([*answers[:2], wrong])]
    text = checkpoint.text
    labelled = Items(folder(tmp_path / "b", *lines), checkpoint.labels)
    measured = measure(manifest, network, labelled, text, unreduced=network, workers=Workers())
    assert measured["exact"].quality["vqa"].value == pytest.approx(2 / 3)
    assert measured["exact"].quality["vqa"].metric == "accuracy"
