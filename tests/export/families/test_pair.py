"""Image-text networks: exported, verified and measured task by task."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from PIL import Image
from torch import nn

from tests import tiny
from tokenfold.bundle.bundle import Bundle
from tokenfold.bundle.manifest import JOINT, TOKENIZER, VISION
from tokenfold.bundle.pair_workload import PairWorkload
from tokenfold.bundle.profile import PROFILE
from tokenfold.bundle.text import TextEncoder
from tokenfold.export.cli import main
from tokenfold.export.families.pair import pair_answers
from tokenfold.export.graphs.pair import JointGraph
from tokenfold.export.pipeline import export_bundle
from tokenfold.export.recipe import Recipe
from tokenfold.export.reference import PairReference
from tokenfold.export.verification.comparison import VerificationError, verify
from tokenfold.export.verification.inputs import pair_batches, random_images
from tokenfold.models.checkpoints import native
from tokenfold.runtime.pair import PairSession


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoint")
    native.save(folder, tiny.pair_checkpoint())
    return folder


def items(folder: Path) -> Path:
    """Write five images with a question, a statement and their answers each."""
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
    """Export a bundle by the command, with PuMer, and measure it."""
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
    # The level of the published shares is sorted among the others by its FLOPs.
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
        qualities = bundle.profile.levels[level].quality
        # The images have no items of the other tasks.
        assert set(qualities) == {"vqa", "reason"}
        for quality in qualities.values():
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
    sized = workload.sized(text=4, image=17)
    removed = 1 - sized.flops(short) / sized.flops(sized.unreduced)
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
        for case in pair_batches(tiny.pair_checkpoint().text, tiny.SIZE, patch=8):
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
    manifest = bundle.manifest
    workload = manifest.workload
    assert isinstance(workload, PairWorkload)
    cases = pair_batches(tiny.pair_checkpoint().text, tiny.SIZE, patch=8)
    session = pair_answers(manifest, PairSession(bundle), cases)

    def deviations(seed: int = 0, weighted: bool = True) -> dict[str, float]:
        reference = PairReference(tiny.pair_checkpoint(seed=seed), workload, weighted=weighted)
        return verify(manifest, pair_answers(manifest, reference, cases), [session])

    assert max(deviations().values()) < 1e-4
    with pytest.raises(VerificationError, match="level high, vqa"):
        deviations(weighted=False)
    with pytest.raises(VerificationError, match="level exact"):
        deviations(seed=1)


def test_a_graph_that_disagrees_is_not_written(
    source: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    write = JointGraph.write

    def write_wrong(graph: JointGraph, path: Path) -> None:
        pooler = graph.model.pooler
        assert isinstance(pooler, nn.Linear)
        pooler.weight.data *= 1.02
        write(graph, path)

    monkeypatch.setattr(JointGraph, "write", write_wrong)
    arguments = ["--method", "none", "--out", str(tmp_path / "b")]
    assert main([str(source), *arguments]) == 2
    assert "level exact, vqa: logits are off" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
