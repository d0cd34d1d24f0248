"""Manifests: contradictions are refused, and a fingerprint identifies the network."""

from __future__ import annotations

import json
from typing import Any

import pytest
from pydantic import ValidationError

from tokenfold.bundle.manifest import (
    IMAGE,
    JOINT,
    MODEL,
    TEXT,
    TOKENIZER,
    VISION,
    Level,
    Manifest,
    Similarity,
    StoredFile,
    TextSpec,
)
from tokenfold.bundle.pair_workload import ViltWorkload
from tokenfold.bundle.preprocess import Preprocess
from tokenfold.bundle.workload import DualWorkload, TextWorkload, Workload

FIELDS: dict[str, Any] = {
    **{"depth": 2, "dim": 8, "mlp_dim": 16, "metric_dim": 4, "stem": 9, "head": 9}
}
IMAGES = Workload(method="tome", tokens=17, protected=1, **FIELDS)
PAIRS = ViltWorkload(method="pumer", text=9, most_text=9, image=17, layers=(0,), **FIELDS)
DUAL = DualWorkload(
    **IMAGES.model_dump(exclude={"kind"}), text=TextWorkload(depth=1, dim=8, mlp_dim=9, head=7)
)
BOUNDED = Preprocess(size=(32, 32), resize="bounded", shorter_side=32, longest=64, multiple=8)


def stored(*names: str) -> dict[str, StoredFile]:
    return {name: StoredFile(sha256=f"{at:064x}", bytes=at) for at, name in enumerate(names)}


def manifest(workload: Workload | ViltWorkload | DualWorkload, **changes: Any) -> Manifest:
    """Return a validated manifest with one level that removes nothing."""
    tokens = workload.widths(workload.unreduced)[-1]
    level = Level(reduction=0, plan=workload.unreduced, flops_ratio=1, tokens_out=tokens)
    fields: dict[str, Any] = {
        "name": "tiny",
        "source": "a test",
        "precision": "fp32",
        "workload": workload,
        "preprocess": Preprocess(size=(32, 32)),
        "levels": {"exact": level},
        "default_level": "exact",
        "versions": {},
    }
    return Manifest(**fields | changes)


def classifier(**changes: Any) -> Manifest:
    return manifest(IMAGES, **{"tasks": {"classify": ("a", "b")}, "files": stored(MODEL)} | changes)


def pair(**changes: Any) -> Manifest:
    fields = {
        "tasks": {"match": ()},
        "text": TextSpec(most_tokens=9),
        "files": stored(VISION, JOINT, TOKENIZER),
    }
    return manifest(PAIRS, **fields | changes)


def dual(**changes: Any) -> Manifest:
    fields = {
        "tasks": {"embed": ()},
        "text": TextSpec(most_tokens=9),
        "similarity": Similarity(width=12, scale=20.0, scores="softmax", template="a {}"),
        "files": stored(IMAGE, TEXT, TOKENIZER),
    }
    return manifest(DUAL, **fields | changes)


def test_only_image_text_networks_take_images_of_any_shape() -> None:
    assert pair(preprocess=BOUNDED).preprocess.resize == "bounded"
    for make in (classifier, dual):
        with pytest.raises(ValidationError, match="takes images of one size"):
            make(preprocess=BOUNDED)


def test_only_dual_encoders_attend_to_padding() -> None:
    padded = TextSpec(most_tokens=9, padding=1)
    assert dual(text=padded).text == padded
    with pytest.raises(ValidationError, match="padding"):
        pair(text=padded)


def test_only_similarity_has_the_scores_of_a_dual_encoder() -> None:
    with pytest.raises(ValidationError, match=r"similarity\.scores"):
        dual(scores={"embed": "sigmoid"})


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("scale", "Infinity"),
        ("scale", "NaN"),
        ("scale", "0"),
        ("bias", "NaN"),
        ("bias", "-Infinity"),
    ],
)
def test_similarities_are_finite(field: str, value: str) -> None:
    content = {"width": 1, "scale": 1, "scores": "sigmoid"} | {field: "?"}
    with pytest.raises(ValidationError, match=field):
        Similarity.model_validate_json(json.dumps(content).replace('"?"', value))


@pytest.mark.parametrize("template", ["a photo", "{} and {}", ""])
def test_a_template_holds_one_label(template: str) -> None:
    with pytest.raises(ValidationError, match="must hold exactly one"):
        Similarity(width=1, scale=1.0, scores="sigmoid", template=template)


def test_the_fingerprint_covers_everything_vectors_depend_on() -> None:
    original = dual()
    assert len(original.fingerprint) == 64
    equal_variants = [
        original.model_copy(update={"name": "other", "versions": {"a": "1"}, "default_level": "x"}),
        dual(files=original.files | {"profile.json": original.files[IMAGE]}),
    ]
    assert {variant.fingerprint for variant in equal_variants} == {original.fingerprint}
    different_variants = [
        dual(files=original.files | {f"{IMAGE}.data": original.files[IMAGE]}),
        dual(files=original.files | {TEXT: original.files[IMAGE]}),
        dual(preprocess=Preprocess(size=(32, 32), mean=(0.0, 0.0, 0.0))),
        dual(text=TextSpec(most_tokens=9, padding=0)),
    ]
    assert (
        len({original.fingerprint, *(variant.fingerprint for variant in different_variants)}) == 5
    )
