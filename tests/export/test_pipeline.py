"""Export from end to end: verified, measured, and written whole or not at all."""

from __future__ import annotations

import zipfile
from io import BytesIO
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from PIL import Image
from torch import nn

from tests import tiny
from tokenfold.bundle.bundle import Bundle
from tokenfold.export.cli import main
from tokenfold.export.pipeline import export_bundle
from tokenfold.export.quality import DataError
from tokenfold.export.recipe import Recipe
from tokenfold.export.verify import VerificationError, normalised, random_images, verify
from tokenfold.models.checkpoints import native
from tokenfold.models.reduction.pitome import PiToMe
from tokenfold.models.reduction.tome import ToMe
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
    wanted = onnx.TensorProto.INT8 if precision == "int8" else onnx.TensorProto.FLOAT16
    assert kinds.count(wanted) >= 12, "the weights of every linear layer"
    assert any(node.domain == DOMAIN for node in model.graph.node)
    assert {path.name for path in out.iterdir()} == {"manifest.json", "model.onnx"}


def test_without_reduction_there_is_one_level(source: Path, tmp_path: Path) -> None:
    assert main([str(source), "--out", str(tmp_path / "b"), "--method", "none"]) == 0
    assert list(Bundle.open(tmp_path / "b").manifest.levels) == ["exact"]


def test_a_bundle_that_disagrees_is_not_written(
    source: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    from tokenfold.export import graph

    export = graph.export

    def wrong(made: graph.Graph, path: Path) -> None:
        head = made.model.head
        assert isinstance(head, nn.Linear)
        with torch.no_grad():
            head.weight *= 1.01
        export(made, path)

    monkeypatch.setattr(graph, "export", wrong)
    assert main([str(source), "--out", str(tmp_path / "b"), "--levels", "exact=0"]) == 2
    assert "level exact: logits are off" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_verification_notices_other_weights_and_other_merges(tmp_path: Path) -> None:
    bundle = export_bundle(
        tiny.checkpoint(), "a test", tmp_path / "b", Recipe(name="b", levels=LEVELS)
    )
    images = random_images(tiny.SIZE, 4)
    levels = bundle.manifest.levels
    session = Session(bundle)
    own = [ToMe()] * 3
    verify(tiny.checkpoint(), own, True, "fp32", session, levels, images)
    with pytest.raises(VerificationError, match="level exact"):
        verify(tiny.checkpoint(seed=1), own, True, "fp32", session, levels, images)
    with pytest.raises(VerificationError, match="level exact"):
        verify(tiny.checkpoint(seed=1), own, True, "int8", session, levels, images)
    with pytest.raises(VerificationError, match="level half: 4 of 4 images merge other tokens"):
        verify(tiny.checkpoint(), [PiToMe(0.9)] * 3, True, "fp32", session, levels, images)


def test_unlabelled_images_measure_agreement(tmp_path: Path) -> None:
    folder = tmp_path / "photos"
    folder.mkdir()
    for at, pixels in enumerate(random_images(tiny.SIZE, 4)):
        Image.fromarray(pixels).save(folder / f"{at}.png")
    recipe = Recipe(name="b", levels=LEVELS, images=folder)
    bundle = export_bundle(tiny.checkpoint(), "a test", tmp_path / "b", recipe)
    assert bundle.profile is not None
    quality = bundle.profile.levels["exact"].quality["classify"]
    assert (quality.metric, quality.value) == ("agreement", 1.0)


def test_images_that_cannot_be_read(tmp_path: Path) -> None:
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


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["no-such-thing"], "no such file or folder"),
        (["random:vit-xxl99"], "vit-xxl99"),
        (["{source}", "--name", "Bad Name"], "name"),
        (["{source}", "--default-level", "best"], "best"),
    ],
)
def test_errors_are_one_line(
    source: Path,
    tmp_path: Path,
    arguments: list[str],
    message: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    given = [argument.format(source=source) for argument in arguments]
    assert main([*given, "--out", str(tmp_path / "b"), "--levels", "exact=0"]) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("tokenfold export: ")
    assert message in error
    assert not (tmp_path / "b").exists()


@pytest.mark.parametrize(
    "levels", ["fast", "fast=2", "fast=x", "fast=-0.1", "a=0,a=0.1", "a=r", "a=r8/2", "a=4+"]
)
def test_wrong_levels_are_explained(levels: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["random:vit-ti16", "--out", "b", "--levels", levels])
    assert caught.value.code == 2
    assert "--levels" in capsys.readouterr().err


def test_what_cannot_be_reached_is_told(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "b"
    assert main([str(source), "--out", str(out), "--levels", "exact=0,most=0.9"]) == 0
    exact, most = capsys.readouterr().out.splitlines()[1:]
    assert "asked" not in exact
    assert "(90.0 % asked)" in most
    assert main([str(source), "--out", str(out)]) == 0
    told = capsys.readouterr().out
    assert "levels are smaller than usual: at most 46.2 % of the FLOPs can go here" in told


def test_levels_may_be_plans(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "b"
    levels = "exact=0,r2=r2,falling=r2/-1,own=3+0+99"
    assert main([str(source), "--out", str(out), "--levels", levels]) == 0
    found = Bundle.open(out).manifest.levels
    plans = {name: level.plan for name, level in found.items()}
    assert plans == {"exact": (0, 0, 0), "r2": (2, 2, 2), "falling": (4, 2, 0), "own": (3, 0, 6)}
    ratios = [level.flops_ratio for level in found.values()]
    assert ratios == sorted(ratios, reverse=True)
    assert found["r2"].reduction == pytest.approx(1 - found["r2"].flops_ratio)
    assert main([str(source), "--out", str(tmp_path / "c"), "--levels", "own=3+0"]) == 2


def test_large_weights_go_to_a_second_file(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tokenfold.export.onnx_file.EXTERNAL_ABOVE", 20_000)
    for precision in ("fp32", "int8"):
        out = tmp_path / precision
        arguments = [str(source), "--out", str(out), "--levels", "exact=0"]
        assert main([*arguments, "--precision", precision]) == 0
        files = set(Bundle.open(out).manifest.files)
        assert {"model.onnx", "model.onnx.data"} <= files
        assert (
            Session(Bundle.open(out)).run(random_images(tiny.SIZE, 1), (0, 0, 0)).logits.size == 5
        )


def test_lossy_agreement_is_with_the_unreduced_fp32_network(tmp_path: Path) -> None:
    folder = tmp_path / "photos"
    folder.mkdir()
    for at, pixels in enumerate(random_images(tiny.SIZE, 60)):
        Image.fromarray(pixels).save(folder / f"{at:02}.png")
    recipe = Recipe(name="b", precision="int8", levels={"exact": 0.0}, images=folder)
    bundle = export_bundle(tiny.checkpoint(), "a test", tmp_path / "b", recipe)
    images = np.stack([np.asarray(Image.open(path)) for path in sorted(folder.iterdir())])
    with torch.inference_mode():
        x = normalised(images, bundle.manifest.preprocess)
        wanted = tiny.checkpoint().model(x).logits.argmax(-1).numpy()
    session = Session(bundle)
    found = [int(session.run(image[None], (0, 0, 0)).logits.argmax()) for image in images]
    assert bundle.profile is not None
    quality = bundle.profile.levels["exact"].quality["classify"]
    assert quality.value == pytest.approx(np.mean(found == wanted))
