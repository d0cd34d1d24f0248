"""Bundles: complete and unaltered, or refused."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from datetime import date
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from tokenfold.bundle.bundle import Bundle, BundleError
from tokenfold.bundle.manifest import (
    IMAGE,
    JOINT,
    MANIFEST,
    MODEL,
    TEXT,
    TOKENIZER,
    VISION,
    Level,
    Manifest,
    Similarity,
    TextSpec,
)
from tokenfold.bundle.pair_workload import ViltWorkload
from tokenfold.bundle.preprocess import Preprocess
from tokenfold.bundle.profile import PROFILE, Latency, LevelProfile, Profile, Quality
from tokenfold.bundle.schedule import flops_ratio
from tokenfold.bundle.workload import DualWorkload, TextWorkload, Workload
from tokenfold.bundle.writing import stored_files, write_manifest, write_profile, writing

WORKLOAD = Workload(
    method="tome", tokens=17, protected=1, depth=2, dim=8, mlp_dim=16, metric_dim=4, stem=9, head=9
)


PAIRS = ViltWorkload(
    method="pumer",
    text=9,
    most_text=9,
    image=17,
    layers=(0,),
    depth=2,
    dim=8,
    mlp_dim=16,
    metric_dim=4,
    stem=9,
    head=9,
)


def level(*plan: int) -> Level:
    return Level(
        reduction=0.1,
        plan=plan,
        flops_ratio=flops_ratio(WORKLOAD, plan),
        tokens_out=WORKLOAD.widths(plan)[-1],
    )


def write(folder: Path, **changes: Any) -> None:
    with writing(folder) as part:
        (part / MODEL).write_bytes(b"a graph")
        fields: dict[str, Any] = {
            "name": "tiny",
            "source": "a test",
            "precision": "fp32",
            "workload": WORKLOAD,
            "preprocess": Preprocess(size=(32, 32)),
            "tasks": {"classify": ("a", "b")},
            "levels": {"exact": level(0, 0), "fast": level(4, 4)},
            "default_level": "exact",
            "versions": {"tokenfold": "0"},
            "files": stored_files(part),
        }
        write_manifest(part, Manifest(**fields | changes))


def profile(*levels: str) -> Profile:
    measured = LevelProfile(latency=(Latency(batch=1, p50_ms=2.0, p99_ms=3.0),))
    return Profile(
        measured=date(2026, 1, 1),
        machine="a machine",
        runtime="a runtime",
        levels=dict.fromkeys(levels, measured),
    )


def test_a_written_bundle_is_read_back(tmp_path: Path) -> None:
    write(tmp_path / "b")
    bundle = Bundle.open(tmp_path / "b")
    assert bundle.model.read_bytes() == b"a graph"
    assert list(bundle.manifest.levels) == ["exact", "fast"]
    assert bundle.profile is None
    assert [path.name for path in tmp_path.iterdir()] == ["b"]


def test_a_profile_is_listed_and_checked(tmp_path: Path) -> None:
    write(tmp_path / "b")
    write_profile(tmp_path / "b", profile("exact"))
    written = Bundle.open(tmp_path / "b")
    assert written.profile == profile("exact")
    assert set(written.manifest.files) == {MODEL, PROFILE}
    write_profile(tmp_path / "b", profile("exact", "nonsense"))
    with pytest.raises(BundleError, match="nonsense"):
        Bundle.open(tmp_path / "b")
    right = Quality(metric="accuracy", value=0.5, low=0.4, high=0.6, samples=9)
    measured = LevelProfile(quality={"vqa": right})
    write(tmp_path / "b")
    write_profile(tmp_path / "b", profile().model_copy(update={"levels": {"exact": measured}}))
    with pytest.raises(BundleError, match=r"unknown tasks.*vqa"):
        Bundle.open(tmp_path / "b")


def test_missing_and_altered_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"manifest\.json is missing"):
        Bundle.open(tmp_path)
    write(tmp_path / "b")
    (tmp_path / "b" / MODEL).write_bytes(b"another graph")
    with pytest.raises(BundleError, match=r"model\.onnx is not the exported file"):
        Bundle.open(tmp_path / "b")
    (tmp_path / "b" / MODEL).unlink()
    with pytest.raises(BundleError, match=r"model\.onnx is missing"):
        Bundle.open(tmp_path / "b")


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (["format"], 3, r"manifest\.json: .* has format 3; this version reads formats 1 and 2"),
        (["format"], 0, "has format 0; this version reads formats 1 and 2"),
        (["format"], 1, "tasks.classify"),
        (["format"], "2", "format"),
        (["surprise"], 1, "surprise"),
        (["levels", "fast", "plan"], [4], "2 counts, not 1"),
        (["levels", "fast", "plan"], [4, -1], "0 or more"),
        (["levels", "fast", "tokens_out"], 3, "differ from those"),
        (["default_level"], "best", "best"),
        (["files"], {}, "model.onnx is not listed"),
        (["name"], "No Such Name", "name"),
    ],
)
def test_a_wrong_manifest_is_refused(
    tmp_path: Path, path: list[str], value: Any, message: str
) -> None:
    write(tmp_path / "b")
    manifest = json.loads((tmp_path / "b" / MANIFEST).read_text())
    inner = manifest
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = value
    (tmp_path / "b" / MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(BundleError, match=message):
        Bundle.open(tmp_path / "b")


def test_an_image_text_network_has_graphs_tokenizer_and_tasks(tmp_path: Path) -> None:
    def make(missing: str = "", **changes: Any) -> Bundle:
        with writing(tmp_path / "p") as part:
            for name in {VISION, JOINT, TOKENIZER} - {missing}:
                (part / name).write_bytes(b"something")
            fields: dict[str, Any] = {
                "name": "pairs",
                "source": "a test",
                "precision": "fp32",
                "tasks": {"vqa": ("a", "b"), "match": ()},
                "scores": {"vqa": "sigmoid"},
                "text": TextSpec(most_tokens=9),
                "workload": PAIRS,
                "preprocess": Preprocess(size=(32, 32)),
                "levels": {
                    "exact": Level(reduction=0, plan=(0,) * 6, flops_ratio=1, tokens_out=26)
                },
                "default_level": "exact",
                "versions": {},
                "files": stored_files(part),
            }
            write_manifest(part, Manifest(**fields | changes))
        return Bundle.open(tmp_path / "p")

    bundle = make()
    assert bundle.manifest.workload == PAIRS
    assert bundle.manifest.pair_tasks == ["vqa", "match"]
    assert bundle.manifest.scoring("vqa") == "sigmoid"
    assert bundle.manifest.scoring("match") == "softmax"
    for path in (bundle.vision, bundle.joint, bundle.tokenizer):
        assert path.is_file()
    for name in (VISION, JOINT, TOKENIZER):
        with pytest.raises(ValidationError, match=f"{name} is not listed"):
            make(missing=name)
    with pytest.raises(ValidationError, match="the field text is required"):
        make(text=None)
    with pytest.raises(ValidationError, match="does not have the tasks classify"):
        make(tasks={"classify": ("a", "b")}, scores={})
    with pytest.raises(ValidationError, match="scores has entail"):
        make(scores={"entail": "sigmoid"})
    write(tmp_path / "b")
    manifest = Bundle.open(tmp_path / "b").manifest
    with pytest.raises(TypeError, match="no texts"):
        manifest.plan(manifest.levels["exact"], text=3, image=17)


DUAL = DualWorkload(
    **WORKLOAD.model_dump(exclude={"kind"}), text=TextWorkload(depth=1, dim=8, mlp_dim=9, head=7)
)


def write_dual(folder: Path, *, missing: str = "", extra: str = "", **changes: Any) -> Bundle:
    with writing(folder) as part:
        for name in {IMAGE, TEXT, TOKENIZER} - {missing}:
            (part / name).write_bytes(name.encode())
        if extra:
            (part / extra).write_bytes(b"more")
        fields: dict[str, Any] = {
            "name": "dual",
            "source": "a test",
            "precision": "fp32",
            "tasks": {"embed": ()},
            "text": TextSpec(most_tokens=9),
            "similarity": Similarity(width=12, scale=20.0, scores="softmax", template="a {}"),
            "workload": DUAL,
            "preprocess": Preprocess(size=(32, 32)),
            "levels": {"exact": level(0, 0)},
            "default_level": "exact",
            "versions": {},
            "files": stored_files(part),
        }
        write_manifest(part, Manifest(**fields | changes))
    return Bundle.open(folder)


def test_a_dual_encoder_has_graphs_tokenizer_and_similarity(tmp_path: Path) -> None:
    bundle = write_dual(tmp_path / "d")
    assert bundle.manifest.kind == "dual"
    assert bundle.manifest.pair_tasks == []
    assert bundle.manifest.workload == DUAL
    for path in (bundle.image, bundle.text, bundle.tokenizer):
        assert path.is_file()
    for name in (IMAGE, TEXT, TOKENIZER):
        with pytest.raises(ValidationError, match=f"{name} is not listed"):
            write_dual(tmp_path / "e", missing=name)
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"text": None}, "the field text is required"),
        ({"similarity": None}, "the field similarity is required"),
        ({"tasks": {"classify": ("a", "b")}}, "does not have the tasks classify"),
        ({"tasks": {"embed": (), "match": ()}}, "does not have the tasks embed, match"),
    ]
    for changes, message in wrong:
        with pytest.raises(ValidationError, match=message):
            write_dual(tmp_path / "e", **changes)
    write(tmp_path / "b")
    manifest = Bundle.open(tmp_path / "b").manifest
    assert manifest.kind == "classifier"
    with pytest.raises(ValidationError, match="not allowed for others"):
        Manifest(**manifest.model_dump() | {"similarity": bundle.manifest.similarity})
    with pytest.raises(ValidationError, match="does not have the tasks embed"):
        Manifest(**manifest.model_dump() | {"tasks": {"embed": ()}})


def test_neighbours_name_known_levels(tmp_path: Path) -> None:
    write_dual(tmp_path / "d")
    for gallery in ("exact", "nonsense"):
        measured = LevelProfile(neighbours={gallery: 0.5})
        write_profile(tmp_path / "d", profile().model_copy(update={"levels": {"exact": measured}}))
        if gallery == "exact":
            assert Bundle.open(tmp_path / "d").profile is not None
    with pytest.raises(BundleError, match=r"unknown levels.*nonsense"):
        Bundle.open(tmp_path / "d")


@pytest.mark.parametrize("name", ["../secret", "/etc/passwd", "a/../../b", ""])
def test_files_outside_the_bundle_are_refused(tmp_path: Path, name: str) -> None:
    write(tmp_path / "b")
    manifest = json.loads((tmp_path / "b" / MANIFEST).read_text())
    manifest["files"][name] = manifest["files"][MODEL]
    (tmp_path / "b" / MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(BundleError, match="inside the bundle"):
        Bundle.open(tmp_path / "b")


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff\xfe", b"null"])
def test_damaged_manifests_are_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / MANIFEST).write_bytes(content)
    with pytest.raises(BundleError, match=MANIFEST):
        Bundle.open(tmp_path)


def test_a_failed_export_keeps_the_previous_bundle(tmp_path: Path) -> None:
    write(tmp_path / "b")

    def fail(out: Path) -> None:
        with writing(out) as part:
            (part / MODEL).write_bytes(b"half a gr")
            raise RuntimeError("half way")

    with pytest.raises(RuntimeError, match="half way"):
        fail(tmp_path / "b")
    assert Bundle.open(tmp_path / "b").model.read_bytes() == b"a graph"
    assert [path.name for path in tmp_path.iterdir()] == ["b"]


def test_a_killed_export_leaves_no_bundle(tmp_path: Path) -> None:
    code = (
        "import os, signal, sys; from pathlib import Path\n"
        "from tokenfold.bundle.writing import writing\n"
        "with writing(Path(sys.argv[1])) as part:\n"
        "    (part / 'manifest.json').write_text('{')\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path / "b")], env=os.environ)
    assert done.returncode == -signal.SIGKILL
    assert not (tmp_path / "b").exists()
    assert any(tmp_path.iterdir()), "the temporary folder stays behind"
    assert Bundle.find(tmp_path) == []
    write(tmp_path / "b")
    assert Bundle.find(tmp_path) == [tmp_path / "b"]
    assert Bundle.find(tmp_path / "b") == [tmp_path / "b"]
    assert Bundle.find(tmp_path / "nowhere") == []


def test_other_files_and_folders_are_not_replaced(tmp_path: Path) -> None:
    thesis = tmp_path / "precious" / "thesis.txt"
    thesis.parent.mkdir()
    thesis.write_text("years of work")
    for out in (thesis.parent, thesis, tmp_path):
        with pytest.raises(BundleError, match="it is not replaced"):
            write(out)
    assert thesis.read_text() == "years of work"
    (tmp_path / "empty").mkdir()
    write(tmp_path / "empty")
    Bundle.open(tmp_path / "empty")


def test_a_bundle_is_replaced_in_one_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "b")
    write(tmp_path / "b", source="another test")
    assert Bundle.open(tmp_path / "b").manifest.source == "another test"
    # Without renameat2, the swap takes two renames; the first is undone if the second fails.
    monkeypatch.setattr("ctypes.CDLL", lambda *_args, **_options: object())
    write(tmp_path / "b", source="a third")
    assert Bundle.open(tmp_path / "b").manifest.source == "a third"
    assert [path.name for path in tmp_path.iterdir()] == ["b"]
