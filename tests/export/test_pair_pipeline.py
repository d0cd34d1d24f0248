"""Export of networks with texts from end to end: verified, measured task by task, or refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from PIL import Image

from tests import tiny
from tokenfold.bundle.bundle import Bundle
from tokenfold.bundle.manifest import JOINT, TOKENIZER, VISION
from tokenfold.bundle.pair_workload import PairWorkload
from tokenfold.bundle.profile import PROFILE
from tokenfold.bundle.text import TextEncoder
from tokenfold.export import pair_graph
from tokenfold.export.cli import main
from tokenfold.export.pair_reference import Reference
from tokenfold.export.pair_verify import cases, verify
from tokenfold.export.pipeline import export_bundle
from tokenfold.export.recipe import Recipe
from tokenfold.export.verify import VerificationError, random_images
from tokenfold.models.checkpoints import native
from tokenfold.runtime.pair import PairSession


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoint")
    native.save(folder, tiny.pair_checkpoint())
    return folder


def items(folder: Path) -> Path:
    """Five images with a question and a statement each, and their answers."""
    folder.mkdir()
    lines: list[dict[str, Any]] = []
    for at, pixels in enumerate(random_images((40, 50), 5)):
        Image.fromarray(pixels).save(folder / f"{at}.png")
        lines.append(
            {"task": "vqa", "images": [f"{at}.png"], "text": "What is it?", "answer": "bee"}
        )
        pair = [f"{at}.png", "0.png"]
        lines.append({"task": "reason", "images": pair, "text": "Is it a cat", "answer": "true"})
    (folder / "items.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\n")
    return folder


@pytest.fixture(scope="module")
def bundle(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """Exported by the command, with PuMer, and measured."""
    folder = tmp_path_factory.mktemp("exported")
    arguments = [str(source), "--method", "pumer", "--images", str(items(folder / "items"))]
    assert main([*arguments, "--out", str(folder / "scenes")]) == 0
    return Bundle.open(folder / "scenes")


def test_a_checkpoint_becomes_a_bundle(bundle: Bundle) -> None:
    manifest = bundle.manifest
    assert manifest.name == "scenes"
    assert manifest.tasks == tiny.pair_checkpoint().labels
    assert manifest.text is not None
    assert manifest.text.most_tokens == 12
    assert manifest.weighted
    assert set(manifest.files) == {VISION, JOINT, TOKENIZER, PROFILE}
    # The published shares are a level among the others, where they belong by FLOPs.
    assert list(manifest.levels) == ["exact", "high", "balanced", "pumer", "fast", "fastest"]
    assert manifest.default_level == "balanced"
    workload = manifest.workload
    assert isinstance(workload, PairWorkload)
    assert manifest.levels["pumer"].plan == workload.plan_at((0.1, 0.3, 0.2))
    assert max(manifest.deviation.values()) < 1e-4
    text = TextEncoder.open(bundle.tokenizer, manifest.text.most_tokens)
    assert text.encode("What is it?").ids.tolist() == (
        tiny.pair_checkpoint().text.encode("What is it?").ids.tolist()
    )


def test_every_task_is_measured_at_every_level(bundle: Bundle) -> None:
    assert bundle.profile is not None
    for level in bundle.manifest.levels:
        found = bundle.profile.levels[level].quality
        # Nothing was asked of the other tasks.
        assert set(found) == {"vqa", "reason"}
        for quality in found.values():
            assert (quality.metric, quality.samples) == ("accuracy", 5)
            assert quality.low <= quality.value <= quality.high


def test_plans_follow_the_lengths(bundle: Bundle) -> None:
    manifest = bundle.manifest
    level = manifest.levels["balanced"]
    assert manifest.plan(level, text=12, image=17) == level.plan
    short = manifest.plan(level, text=4, image=17)
    assert short != level.plan
    workload = manifest.workload
    assert isinstance(workload, PairWorkload)
    own = workload.sized(text=4, image=17)
    removed = 1 - own.flops(short) / own.flops(own.unreduced)
    assert removed == pytest.approx(level.reduction, abs=0.05)
    exact = manifest.levels["exact"]
    assert not any(manifest.plan(exact, text=3, image=9))


def test_int8_keeps_the_answers(source: Path, bundle: Bundle, tmp_path: Path) -> None:
    out = tmp_path / "b"
    levels = ["--levels", "exact=0,pumer=0.1/0.3/0.2", "--precision", "int8"]
    assert main([str(source), "--out", str(out), *levels]) == 0
    small = Bundle.open(out)
    assert 0 < small.manifest.deviation["exact"] < 0.25
    kinds = [weight.data_type for weight in onnx.load(small.joint).graph.initializer]
    assert kinds.count(onnx.TensorProto.INT8) >= 4 * 4, "the weights of every linear layer"
    answers = []
    for session in (PairSession(bundle), PairSession(small)):
        chosen = []
        for case in cases(tiny.pair_checkpoint().text, tiny.SIZE, patch=8):
            image = session.embed(case.left)
            plan = small.manifest.workload.unreduced
            logits = session.fuse(image, case.ids, case.size, plan, task="vqa").logits
            assert logits is not None
            chosen += logits.argmax(-1).tolist()
        answers.append(chosen)
    wide, narrow = answers
    assert np.mean(np.array(wide) == np.array(narrow)) > 0.7


def test_meter(tmp_path: Path) -> None:
    checkpoint = tiny.meter_checkpoint()
    recipe = Recipe(name="b", levels={"exact": 0.0, "half": 0.3}, rates=(0.2, 0.3, 0.2))
    bundle = export_bundle(checkpoint, "a test", tmp_path / "b", recipe)
    assert bundle.manifest.workload.kind == "meter"
    assert max(bundle.manifest.deviation.values()) < 1e-4


def test_verification_notices_other_weights_and_another_way_to_merge(bundle: Bundle) -> None:
    manifest, session = bundle.manifest, PairSession(bundle)
    workload = manifest.workload
    assert isinstance(workload, PairWorkload)
    checkpoint = tiny.pair_checkpoint()
    given = cases(checkpoint.text, tiny.SIZE, patch=8)
    right = Reference(checkpoint, workload, weighted=True)
    found = verify(manifest, right, [session], given)
    assert max(found.values()) < 1e-4
    plain = Reference(checkpoint, workload, weighted=False)
    with pytest.raises(VerificationError, match="level high, vqa"):
        verify(manifest, plain, [session], given)
    other = Reference(tiny.pair_checkpoint(seed=1), workload, weighted=True)
    with pytest.raises(VerificationError, match="level exact"):
        verify(manifest, other, [session], given)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--method", "pitome"], "none, tome and pumer, not pitome"),
        (["--no-proportional"], "--plain"),
        (["--layers", "9"], "reducing layers are 0 to 3"),
        (["--rates", "0/0/0"], "a rate above 0"),
        (["--method", "tome", "--layers", "1"], "PuMer's"),
        (["--method", "tome", "--levels", "a=0.1/0.3/0.2"], "are PuMer's"),
        (["--levels", "a=r8"], "r is ToMe's"),
        (["--levels", "a=1+2"], "12 counts"),
        (["--levels", "a=1+0+0+0+0+0+0+0+0+0+0+0"], "layer 0 does not reduce"),
        (["--levels", "a=0", "--default-level", "pumer"], "is not among a"),
        (["--images", "{empty}"], "holds no images"),
    ],
)
def test_what_cannot_be_made(
    source: Path,
    tmp_path: Path,
    arguments: list[str],
    message: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "empty").mkdir()
    given = [argument.format(empty=tmp_path / "empty") for argument in arguments]
    assert main([str(source), "--out", str(tmp_path / "b"), *given]) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("tokenfold export: ")
    assert message in error
    assert not (tmp_path / "b").exists()


@pytest.mark.parametrize("options", [["--rates", "0.1/0.3"], ["--layers", "a"]])
def test_wrong_options_are_explained(
    options: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        main(["nowhere", "--out", "b", *options])
    assert options[0] in capsys.readouterr().err


def test_image_classifiers_take_no_options_of_texts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    native.save(tmp_path / "c", tiny.checkpoint())
    for options in (["--plain"], ["--method", "pumer"], ["--rates", "0.1/0.1/0.1"]):
        assert main([str(tmp_path / "c"), "--out", str(tmp_path / "b"), *options]) == 2
        assert "texts" in capsys.readouterr().err or options[0] == "--method"


def test_a_graph_that_disagrees_is_not_written(
    source: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    usual: Callable[..., None] = pair_graph.JointGraph.write

    def wrong(made: pair_graph.JointGraph, path: Path) -> None:
        made.model.pooler.weight.data *= 1.02  # type: ignore[union-attr, operator]
        usual(made, path)

    monkeypatch.setattr(pair_graph.JointGraph, "write", wrong)
    arguments = ["--method", "none", "--out", str(tmp_path / "b")]
    assert main([str(source), *arguments]) == 2
    assert "level exact, vqa: logits are off" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
