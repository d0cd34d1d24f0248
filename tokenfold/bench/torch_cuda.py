"""A bundle's network in PyTorch on the GPU, measured in a process of its own. Imports torch.

    python -m tokenfold.bench.torch_cuda BUNDLE --rows '[["blocks", [0, 0], 32]]'

It gets everything ready, says so in a line of JSON, and then, for every line that asks for a slice
of time, answers with the time of one run: `on_gpu` gives the slices, so that what is compared is
measured in the same rounds. Only who was asked uses the GPU.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from tokenfold.bench.measure import Queue
from tokenfold.bench.options import TorchWay
from tokenfold.bench.subjects import random_batches
from tokenfold.bench.torch_eager import COMPARED, OTHER_NETWORK, locate
from tokenfold.bundle.bundle import Bundle
from tokenfold.bundle.workload import Plan, Workload
from tokenfold.export.matchers import matchers
from tokenfold.export.reference import normalised
from tokenfold.models.checkpoints.load import load_classifier
from tokenfold.models.networks.vit import VisionTransformer
from tokenfold.models.reduction.matcher import Matcher
from tokenfold.models.reduction.tome import ToMe

WARM_UPS = 3
"""Runs before one is recorded: libraries set themselves up in the first."""

RECOMPILES = 64
"""Programs of a block that may be kept, so that none runs eager."""

GUESS = 0.02
"""Seconds that each of two ways is tried for, to keep the faster one."""

TOLERANCE = 0.3
"""Relative error of compiled logits against eager ones: where these round otherwise, some tokens
merge elsewhere."""


class Network(NamedTuple):
    """What a bundle was exported from.

    Attributes:
        matchers: one for each layer; None where the bundle never reduces.
    """

    model: VisionTransformer
    matchers: list[Matcher] | None
    proportional: bool
    images: Callable[[int], Tensor]

    @classmethod
    def of(cls, bundle: Bundle, device: str) -> Network:
        """Load the checkpoint, in the bundle's precision.

        Raises:
            ValueError: it cannot be loaded, or is another network than the bundle's by now.
        """
        manifest = bundle.manifest
        dtype = torch.float16 if manifest.precision == "fp16" else torch.float32
        workload = manifest.workload
        model = load_classifier(locate(manifest.source)).model
        assert isinstance(workload, Workload)
        if model.config.workload(workload.method) != workload:
            raise ValueError(OTHER_NETWORK)
        found = matchers(workload.method, model.config)
        if found is not None:
            # An image has no padding; to look for it would make PyTorch wait in every layer.
            found = [replace(one, padded=False) if isinstance(one, ToMe) else one for one in found]

        def images(batch: int) -> Tensor:
            (pixels,) = random_batches(manifest.preprocess.size, batch, 1)
            return normalised(pixels, manifest.preprocess).to(device, dtype).contiguous()

        model = model.to(device, dtype).requires_grad_(False)
        return cls(model, found, manifest.proportional, images)

    def run(self, plan: Plan) -> Callable[[Tensor], Tensor]:
        """Normalised images (B, 3, H, W) -> logits (B, classes)."""
        # Without a plan the network is the plain one: no sizes in the attention.
        counts = plan if any(plan) else None

        def logits(images: Tensor) -> Tensor:
            out: Tensor = self.model(
                images, counts, self.matchers, proportional=self.proportional
            ).logits
            return out

        return logits

    def compiled(self, way: TorchWay, plan: Plan) -> Callable[[Tensor], Tensor]:
        """The same, compiled when it first runs; of `blocks` every run from now on is."""
        if way == "blocks":
            for block in self.model.blocks:
                # Tokens, images and how many go are unknowns: all plans and batches share a few
                # programs, but for those with sizes of 1. Asked for twice, nothing would be shared.
                if block._compiled_call_impl is None:
                    block.compile(dynamic=True)
        if way in ("eager", "blocks"):
            return self.run(plan)
        mode = "max-autotune-no-cudagraphs" if way == "autotuned" else "default"
        made: Callable[[Tensor], Tensor] = torch.compile(self.run(plan), mode=mode, dynamic=False)
        return made


class Row:
    """One plan and batch in one way, ready to run.

    Attributes:
        logits: of the first few images.
        graph: whether a CUDA graph is what runs; None as long as nobody has looked.
    """

    def __init__(self, network: Network, way: TorchWay, plan: Plan, batch: int) -> None:
        """Compile and record.

        Raises:
            ValueError: compiled, it gives other logits.
        """
        self._images = network.images(batch)
        with torch.compiler.set_stance("force_eager"):
            eager = network.run(plan)(self._images)
        self._run = network.compiled(way, plan)
        found = self._run(self._images)
        off = float((found - eager).norm() / eager.norm())
        # Written so that NaN is refused.
        if not off <= TOLERANCE:
            raise ValueError(f"{way}, its logits are off by {off:.1e} of what they are eager")
        self.logits: list[list[float]] = found[:COMPARED].float().tolist()
        self.graph: bool | None = None
        self._queues = [Queue(lambda: self._run(self._images), wait)]
        if torch.cuda.is_available():
            try:
                self._queues.append(self._recorded())
            except RuntimeError as error:
                print(f"{way} runs without a CUDA graph: {error}", file=sys.stderr)

    def seconds(self, most: float) -> float:
        """See `Queue.seconds`; the first time finds out which of the two ways is faster."""
        if len(self._queues) > 1:
            times = [queue.seconds(GUESS) for queue in self._queues]
            self.graph = times[1] < times[0]
            self._queues = [self._queues[self.graph]]
        return self._queues[0].seconds(most)

    def _recorded(self) -> Queue:
        graph = torch.cuda.CUDAGraph()
        aside = torch.cuda.Stream()
        aside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(aside):
            for _ in range(WARM_UPS):
                self._run(self._images)
        torch.cuda.current_stream().wait_stream(aside)
        with torch.cuda.graph(graph):
            # Kept, for the graph writes to it.
            self._out = self._run(self._images)
        return Queue(graph.replay, wait)


def wait() -> None:
    """Until the GPU has done what it was given."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def main(arguments: Sequence[str] | None = None) -> int:
    """The measured process. A line that is no JSON, or none, ends it."""
    parser = argparse.ArgumentParser(prog="python -m tokenfold.bench.torch_cuda")
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--rows", type=json.loads, required=True, help="[[way, plan, batch], ...]")
    options = parser.parse_args(arguments)
    # What compiles may print; only answers go where they are read.
    with os.fdopen(os.dup(1), "w") as answers:
        os.dup2(2, 1)

        def answer(what: Any) -> None:
            print(json.dumps(what), file=answers, flush=True)

        # Blocks with few tokens left are programs of their own.
        torch._dynamo.config.recompile_limit = RECOMPILES
        # fp32 is fp32, as in the bundle's session.
        torch.backends.cudnn.allow_tf32 = False
        network = Network.of(
            Bundle.open(options.bundle), "cuda" if torch.cuda.is_available() else "cpu"
        )
        made = [Row(network, way, tuple(plan), batch) for way, plan, batch in options.rows]
        answer({"torch": torch.__version__, "logits": [row.logits for row in made]})
        for line in sys.stdin:
            at, seconds = json.loads(line)
            answer({"seconds": made[at].seconds(seconds), "graph": made[at].graph})
    return 0


if __name__ == "__main__":
    sys.exit(main())
