"""Format numbers of documents: the current and the previous format are read."""

from __future__ import annotations

import json
from typing import Any, ClassVar, Literal

import pytest

from tokenfold.bundle.document import FORMAT, VersionedDocument
from tokenfold.bundle.manifest import MODEL, Manifest
from tokenfold.bundle.profile import Profile


class Note(VersionedDocument):
    """A document whose text was called `words` in the previous format."""

    current_format: ClassVar[int] = 5
    format: Literal[5] = 5
    text: str

    @classmethod
    def upgrade(cls, content: dict[str, Any]) -> dict[str, Any]:
        return {"text": content["words"].strip()}


def test_the_current_and_the_previous_format_are_read() -> None:
    assert Note.parse('{"format": 5, "text": "hello"}') == Note(text="hello")
    assert Note.parse('{"format": 4, "words": " hello "}') == Note(text="hello")


@pytest.mark.parametrize(
    ("number", "advice"), [(6, "install a newer version"), (3, "export the model again")]
)
def test_other_formats_are_refused_by_number(number: int, advice: str) -> None:
    message = f"has format {number}; this version reads formats 4 and 5: {advice}"
    with pytest.raises(ValueError, match=message):
        Note.parse(json.dumps({"format": number, "text": "hello", "more": 1}))


@pytest.mark.parametrize(
    "text", ["", "[", "null", "3", '{"format": true}', '{"format": 4, "words": 3}', "[" * 9999]
)
def test_text_that_is_no_document_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        Note.parse(text)


# Format 1 had image classifiers only, and one quality per level.
OLD_MANIFEST: dict[str, Any] = {
    "format": 1,
    "name": "cifar10",
    "task": "classify",
    "source": "a checkpoint",
    "precision": "fp32",
    "workload": {
        "method": "tome",
        "tokens": 65,
        "protected": 1,
        "depth": 2,
        "dim": 128,
        "mlp_dim": 384,
        "mlp_products": 2,
        "metric_dim": 32,
        "stem": 15646720,
        "head": 1280,
    },
    "shape": "constant",
    "proportional": True,
    "preprocess": {"size": [32, 32], "resize": "stretch", "shorter_side": None},
    "labels": ["cat", "dog"],
    "levels": {"exact": {"reduction": 0, "plan": [0, 0], "flops_ratio": 1, "tokens_out": 65}},
    "default_level": "exact",
    "versions": {"torch": "2.9"},
    "deviation": {"exact": 1e-6},
    "files": {MODEL: {"sha256": "0" * 64, "bytes": 7}},
}
OLD_PROFILE: dict[str, Any] = {
    "format": 1,
    "measured": "2026-11-20",
    "machine": "AMD EPYC, 2 cores",
    "runtime": "onnxruntime 1.31.1, native ops (avx512)",
    "levels": {
        "exact": {
            "quality": {"metric": "top1", "value": 0.8, "low": 0.7, "high": 0.9, "samples": 50},
            "latency": [{"batch": 1, "p50_ms": 2.5, "p99_ms": 3.0}],
        },
        "fast": {"quality": None},
    },
}


def test_a_manifest_of_format_1_is_an_image_classifier() -> None:
    manifest = Manifest.parse(json.dumps(OLD_MANIFEST))
    assert manifest.format == FORMAT
    assert manifest.kind == "classifier"
    assert manifest.tasks == {"classify": ("cat", "dog")}
    assert manifest.workload.tokens == 65
    assert Manifest.parse(manifest.model_dump_json()) == manifest


def test_a_profile_of_format_1_has_one_task() -> None:
    profile = Profile.parse(json.dumps(OLD_PROFILE))
    assert profile.levels["exact"].quality["classify"].value == 0.8
    assert profile.levels["exact"].latency[0].p50_ms == 2.5
    assert profile.levels["fast"].quality == {}


@pytest.mark.parametrize("document", [Manifest, Profile])
def test_damaged_documents_of_format_1_are_refused(document: type[VersionedDocument]) -> None:
    with pytest.raises(ValueError, match="format 1"):
        document.parse('{"format": 1, "workload": 3, "levels": []}')
