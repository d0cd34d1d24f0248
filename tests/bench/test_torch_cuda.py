"""The bench's PyTorch process for a GPU, run on the CPU."""

from __future__ import annotations

import io
import json
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests import tiny
from tokenfold.bench import torch_cuda
from tokenfold.bench.options import TorchWay
from tokenfold.bench.subjects import ImageGraphs, random_batches
from tokenfold.bench.torch_cuda import Network, TorchCase
from tokenfold.bundle.bundle import Bundle
from tokenfold.export.pipeline import export_bundle
from tokenfold.export.recipe import Recipe
from tokenfold.models.checkpoints import native


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    folder = tmp_path_factory.mktemp("exported")
    native.save(folder / "weights", tiny.checkpoint())
    recipe = Recipe(name="tiny", levels={"exact": 0.0, "most": 0.4})
    return export_bundle(tiny.checkpoint(), str(folder / "weights"), folder / "tiny", recipe)


@pytest.fixture
def quick_compiler(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[dict[str, Any]]]:
    """Trace graphs without compiling them; yields the options of each call of the compiler."""
    compiler_calls: list[dict[str, Any]] = []
    compile_ = torch.compile

    def traced(function: Callable[..., Any], **options: Any) -> Any:
        compiler_calls.append(options)
        # A graph break would mean that something waits for the GPU and cannot be recorded.
        return compile_(function, backend="eager", fullgraph=True, dynamic=options.get("dynamic"))

    monkeypatch.setattr(torch, "compile", traced)
    torch.compiler.reset()
    yield compiler_calls
    torch.compiler.reset()


@pytest.mark.parametrize("way", ["eager", "blocks", "compiled", "autotuned"])
@pytest.mark.parametrize("level", ["exact", "most"])
def test_each_way_gives_the_bundles_logits(
    way: TorchWay, level: str, bundle: Bundle, quick_compiler: list[dict[str, Any]]
) -> None:
    plan = bundle.manifest.levels[level].plan
    row = TorchCase(Network.of(bundle, "cpu"), way, plan, 3)
    (images,) = random_batches(bundle.manifest.preprocess.size, 3, 1)
    expected = ImageGraphs(bundle).run(images, plan)
    np.testing.assert_allclose(np.asarray(row.logits), expected, atol=1e-4)
    assert row.seconds(0.001) > 0
    assert row.graph is None
    times = {"eager": 0, "blocks": bundle.manifest.workload.depth, "compiled": 1, "autotuned": 1}
    assert len(quick_compiler) == times[way]


def test_blocks_are_compiled_once_for_all_plans(
    bundle: Bundle, quick_compiler: list[dict[str, Any]]
) -> None:
    network = Network.of(bundle, "cpu")
    cases = [
        TorchCase(network, "blocks", plan, batch)
        for plan in ((3, 3, 3), (5, 1, 2))
        for batch in (2, 3)
    ]
    eager = Network.of(bundle, "cpu")
    for row, plan in zip(cases, ((3, 3, 3), (3, 3, 3), (5, 1, 2), (5, 1, 2)), strict=True):
        expected = TorchCase(eager, "eager", plan, len(row.logits)).logits
        np.testing.assert_allclose(np.asarray(row.logits), np.asarray(expected), atol=1e-5)
    assert quick_compiler == [{"dynamic": True}] * bundle.manifest.workload.depth


@pytest.mark.usefixtures("quick_compiler")
def test_compiled_logits_are_compared_with_eager_ones(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    def wrong(self: Network, _way: TorchWay, _plan: object) -> Callable[..., torch.Tensor]:
        return lambda images: self.run((0, 0, 0))(images) + float("nan")

    monkeypatch.setattr(Network, "compiled", wrong)
    with pytest.raises(ValueError, match="compiled: logits differ from the eager ones by nan"):
        TorchCase(Network.of(bundle, "cpu"), "compiled", (0, 0, 0), 1)


def test_another_network_is_refused(bundle: Bundle, tmp_path: Path) -> None:
    native.save(tmp_path, tiny.checkpoint(dim=96))
    other = Bundle(bundle.folder, bundle.manifest.model_copy(), None)
    other.manifest = bundle.manifest.model_copy(update={"source": str(tmp_path)})
    with pytest.raises(ValueError, match="not the network"):
        Network.of(other, "cpu")


def test_the_precision_is_the_bundles(bundle: Bundle) -> None:
    half = bundle.manifest.model_copy(update={"precision": "fp16"})
    network = Network.of(Bundle(bundle.folder, half, None), "cpu")
    assert network.images(2).dtype == torch.float16
    assert next(network.model.parameters()).dtype == torch.float16


def test_the_process_answers_every_line(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plans = [list(level.plan) for level in bundle.manifest.levels.values()]
    rows = json.dumps([["eager", plans[0], 1], ["eager", plans[1], 2]])
    monkeypatch.setattr(sys, "stdin", io.StringIO("[1, 0.001]\n[0, 0.001]\n"))
    # Answers go to the original stdout; everything else that is printed goes to stderr.
    saved_stdout = os.dup(1)
    with (tmp_path / "answers").open("w") as answers:
        os.dup2(answers.fileno(), 1)
        try:
            assert torch_cuda.main([str(bundle.folder), "--rows", rows]) == 0
        finally:
            os.dup2(saved_stdout, 1)
            os.close(saved_stdout)
    ready, *answers_read = map(json.loads, (tmp_path / "answers").read_text().splitlines())
    assert ready["torch"] == torch.__version__
    assert [len(logits) for logits in ready["logits"]] == [1, 2]
    assert [set(answer) for answer in answers_read] == [{"seconds", "graph"}] * 2
    assert min(answer["seconds"] for answer in answers_read) > 0
