"""The export pipeline: verified, measured, and written completely or not at all."""

from __future__ import annotations

import zipfile
from collections import Counter
from io import BytesIO
from pathlib import Path

import onnx
import pytest
from PIL import Image

from tests import tiny
from tokenfold.bundle.bundle import Bundle
from tokenfold.bundle.manifest import Manifest
from tokenfold.bundle.writing import stored_files, write_manifest
from tokenfold.export import pipeline
from tokenfold.export.cli import main
from tokenfold.export.pipeline import export_bundle
from tokenfold.export.quality.photos import DataError
from tokenfold.export.recipe import Recipe
from tokenfold.export.stages import Step
from tokenfold.export.verification.inputs import random_images
from tokenfold.models.checkpoints import native
from tokenfold.runtime.libraries import DOMAIN
from tokenfold.runtime.session import Session

LEVELS = {"exact": 0.0, "half": 0.4}


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoint")
    native.save(folder, tiny.checkpoint())
    return folder


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("photos") / "photos.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for at, pixels in enumerate(random_images((40, 50), 10)):
            file = BytesIO()
            Image.fromarray(pixels).save(file, "PNG")
            archive.writestr(f"{tiny.LABELS[at % 5]}/{at}.png", file.getvalue())
    return path


def test_a_checkpoint_becomes_a_bundle(source: Path, photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "Tiny"
    arguments = [str(source), "--out", str(out), "--levels", "exact=0,half=0.4"]
    assert main([*arguments, "--images", str(photos)]) == 0
    bundle = Bundle.open(out)
    assert bundle.manifest.name == "tiny"
    assert bundle.manifest.default_level == "exact"
    assert bundle.manifest.source == str(source)
    assert list(bundle.manifest.levels) == ["exact", "half"]
    assert max(bundle.manifest.deviation.values()) < 1e-4
    assert bundle.profile is not None
    quality = bundle.profile.levels["half"].quality["classify"]
    assert (quality.metric, quality.samples) == ("top1", 10)
    assert quality.low <= quality.value <= quality.high
    images = random_images(tiny.SIZE, 2)
    output = Session(bundle).run(images, bundle.manifest.levels["half"].plan, slots=True)
    assert output.logits.shape == (2, 5)
    assert output.slots is not None
    assert output.slots.max() + 1 == bundle.manifest.levels["half"].tokens_out


@pytest.mark.parametrize("precision", ["int8", "fp16"])
def test_other_precisions_are_verified_too(source: Path, precision: str, tmp_path: Path) -> None:
    out = tmp_path / "b"
    levels = "exact=0,half=0.4"
    assert main([str(source), "--out", str(out), "--precision", precision, "--levels", levels]) == 0
    bundle = Bundle.open(out)
    assert bundle.manifest.precision == precision
    assert 0 < bundle.manifest.deviation["exact"] < 0.1
    model = onnx.load(bundle.model)
    kinds = [initializer.data_type for initializer in model.graph.initializer]
    expected_type = onnx.TensorProto.INT8 if precision == "int8" else onnx.TensorProto.FLOAT16
    assert kinds.count(expected_type) >= 12, "the weights of every linear layer"
    assert any(node.domain == DOMAIN for node in model.graph.node)
    assert {path.name for path in out.iterdir()} == {"manifest.json", "model.onnx"}


def test_without_reduction_there_is_one_level(source: Path, tmp_path: Path) -> None:
    assert main([str(source), "--out", str(tmp_path / "b"), "--method", "none"]) == 0
    assert list(Bundle.open(tmp_path / "b").manifest.levels) == ["exact"]


def test_images_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "a.png").write_bytes(b"no image")
    for folder, message in [
        ("empty", "holds no images"),
        ("broken", r"a\.png"),
        ("none", "neither"),
    ]:
        recipe = Recipe(name="b", levels=LEVELS, images=tmp_path / folder)
        with pytest.raises(DataError, match=message):
            export_bundle(tiny.checkpoint(), "a test", tmp_path / "b", recipe)
        assert not (tmp_path / "b").exists()


def test_large_weights_go_to_a_second_file(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tokenfold.export.graphs.onnx_file.EXTERNAL_ABOVE", 20_000)
    for precision in ("fp32", "int8"):
        out = tmp_path / precision
        arguments = [str(source), "--out", str(out), "--levels", "exact=0"]
        assert main([*arguments, "--precision", precision]) == 0
        files = set(Bundle.open(out).manifest.files)
        assert {"model.onnx", "model.onnx.data"} <= files
        assert (
            Session(Bundle.open(out)).run(random_images(tiny.SIZE, 1), (0, 0, 0)).logits.size == 5
        )


def test_the_manifest_is_written_once_and_complete(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifests: list[Manifest] = []

    def record(folder: Path, manifest: Manifest) -> None:
        manifests.append(manifest)
        write_manifest(folder, manifest)

    monkeypatch.setattr(pipeline, "write_manifest", record)
    out = tmp_path / "b"
    bundle = export_bundle(tiny.checkpoint(), "a test", out, Recipe(name="b", levels=LEVELS))
    assert manifests == [bundle.manifest]
    assert set(bundle.manifest.deviation) == set(LEVELS)
    assert bundle.manifest.files == stored_files(out)


def test_every_stage_reports_its_steps(tmp_path: Path) -> None:
    totals: dict[str, int] = {}
    done: Counter[str] = Counter()

    def stage(title: str, steps: int) -> Step:
        totals[title] = steps
        return lambda: done.update([title])

    recipe = Recipe(name="b", levels=LEVELS, precision="int8")
    export_bundle(tiny.dual_checkpoint(), "a test", tmp_path / "b", recipe, stage)
    assert totals == {"export graphs": 2, "quantise": 2, "verify": 2}
    assert done == totals


def test_the_versions_of_the_packages_are_recorded() -> None:
    installed = pipeline.versions()
    assert {"torch", "onnx"} <= set(installed) <= set(pipeline.PACKAGES)
