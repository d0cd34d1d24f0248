"""Measure a bundle's network in PyTorch on the GPU, in a separate process. Imports torch.

    python -m tokenfold.bench.torch_cuda BUNDLE --rows '[["blocks", [0, 0], 32]]'

The process prepares everything and reports this as a line of JSON. After that it answers each
input line, which requests a slice of time, with the duration of a run. `on_gpu` sends the
requests, so that compared subjects are measured in the same rounds. A process only uses the GPU
while it answers a request.
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

from tokenfold.bench.measure import LaunchQueue
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
"""Runs before one is recorded: libraries initialise themselves in the first."""

RECOMPILES = 64
"""Maximum number of compiled programs per block, high enough that none falls back to eager."""

PROBE_SECONDS = 0.02
"""Duration of the trial of each of two queues, to keep the faster one."""

TOLERANCE = 0.3
"""Maximum relative error of compiled logits against eager ones: different rounding makes some
tokens merge elsewhere."""


class Network(NamedTuple):
    """The network that a bundle was exported from.

    Attributes:
        matchers: one per layer; None if the bundle never reduces.
        images: returns a batch of normalised images, given its size.
    """

    model: VisionTransformer
    matchers: list[Matcher] | None
    proportional: bool
    images: Callable[[int], Tensor]

    @classmethod
    def of(cls, bundle: Bundle, device: str) -> Network:
        """Load the checkpoint in the bundle's precision.

        Raises:
            ValueError: the checkpoint cannot be loaded, or now holds another network.
        """
        manifest = bundle.manifest
        dtype = torch.float16 if manifest.precision == "fp16" else torch.float32
        workload = manifest.workload
        model = load_classifier(locate(manifest.source)).model
        assert isinstance(workload, Workload)
        if model.config.workload(workload.method) != workload:
            raise ValueError(OTHER_NETWORK)
        layer_matchers = matchers(workload.method, model.config)
        if layer_matchers is not None:
            # Images have no padding; looking for it would make PyTorch wait in every layer.
            layer_matchers = [
                replace(matcher, padded=False) if isinstance(matcher, ToMe) else matcher
                for matcher in layer_matchers
            ]

        def images(batch: int) -> Tensor:
            (pixels,) = random_batches(manifest.preprocess.size, batch, 1)
            return normalised(pixels, manifest.preprocess).to(device, dtype).contiguous()

        model = model.to(device, dtype).requires_grad_(False)
        return cls(model, layer_matchers, manifest.proportional, images)

    def run(self, plan: Plan) -> Callable[[Tensor], Tensor]:
        """Return a function from normalised images (B, 3, H, W) to logits (B, classes)."""
        # Without a plan, run the plain network: no token sizes in the attention.
        layer_counts = plan if any(plan) else None

        def logits(images: Tensor) -> Tensor:
            out: Tensor = self.model(
                images, layer_counts, self.matchers, proportional=self.proportional
            ).logits
            return out

        return logits

    def compiled(self, way: TorchWay, plan: Plan) -> Callable[[Tensor], Tensor]:
        """Return the function of `run`, compiled at its first call.

        `blocks` compiles the blocks of the model itself, so later runs of any plan use them.
        """
        if way == "blocks":
            for block in self.model.blocks:
                # Token counts, images and reductions are dynamic: all plans and batches share a
                # few programs, except for sizes of 1. Compiling a block twice would share nothing.
                if block._compiled_call_impl is None:
                    block.compile(dynamic=True)
        if way in ("eager", "blocks"):
            return self.run(plan)
        mode = "max-autotune-no-cudagraphs" if way == "autotuned" else "default"
        network_run: Callable[[Tensor], Tensor] = torch.compile(
            self.run(plan), mode=mode, dynamic=False
        )
        return network_run


class TorchCase:
    """A plan and batch size with one way to run PyTorch, ready to be measured.

    Attributes:
        logits: logits of the first few images.
        graph: whether the CUDA graph is the faster way; None before the first measurement.
    """

    def __init__(self, network: Network, way: TorchWay, plan: Plan, batch: int) -> None:
        """Compile and record the run.

        Raises:
            ValueError: the compiled logits differ from the eager ones.
        """
        self._images = network.images(batch)
        with torch.compiler.set_stance("force_eager"):
            eager = network.run(plan)(self._images)
        self._run = network.compiled(way, plan)
        logits = self._run(self._images)
        error = float((logits - eager).norm() / eager.norm())
        # Written so that NaN is rejected.
        if not error <= TOLERANCE:
            raise ValueError(
                f"{way}: logits differ from the eager ones by {error:.1e}, more than {TOLERANCE:g}"
            )
        self.logits: list[list[float]] = logits[:COMPARED].float().tolist()
        self.graph: bool | None = None
        self._queues = [LaunchQueue(lambda: self._run(self._images), wait)]
        if torch.cuda.is_available():
            try:
                self._queues.append(self._recorded())
            except RuntimeError as error:
                print(f"{way} runs without a CUDA graph: {error}", file=sys.stderr)

    def seconds(self, budget: float) -> float:
        """See `LaunchQueue.seconds`; the first call selects the faster queue."""
        if len(self._queues) > 1:
            times = [queue.seconds(PROBE_SECONDS) for queue in self._queues]
            self.graph = times[1] < times[0]
            self._queues = [self._queues[self.graph]]
        return self._queues[0].seconds(budget)

    def _recorded(self) -> LaunchQueue:
        graph = torch.cuda.CUDAGraph()
        side_stream = torch.cuda.Stream()
        side_stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side_stream):
            for _ in range(WARM_UPS):
                self._run(self._images)
        torch.cuda.current_stream().wait_stream(side_stream)
        with torch.cuda.graph(graph):
            # Kept alive, because the graph writes to it.
            self._out = self._run(self._images)
        return LaunchQueue(graph.replay, wait)


def wait() -> None:
    """Wait until the GPU has finished all its work."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the measured process until its input ends; an input line that is not JSON is an error."""
    parser = argparse.ArgumentParser(prog="python -m tokenfold.bench.torch_cuda")
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--rows", type=json.loads, required=True, help="[[way, plan, batch], ...]")
    options = parser.parse_args(arguments)
    # Compilers may print to stdout, so only answers go to the original stdout.
    with os.fdopen(os.dup(1), "w") as answers:
        os.dup2(2, 1)

        def answer(message: Any) -> None:
            print(json.dumps(message), file=answers, flush=True)

        # Blocks with few remaining tokens are separate programs.
        torch._dynamo.config.recompile_limit = RECOMPILES
        # Full fp32 precision, as in the bundle's session.
        torch.backends.cudnn.allow_tf32 = False
        network = Network.of(
            Bundle.open(options.bundle), "cuda" if torch.cuda.is_available() else "cpu"
        )
        cases = [TorchCase(network, way, tuple(plan), batch) for way, plan, batch in options.rows]
        answer({"torch": torch.__version__, "logits": [row.logits for row in cases]})
        for line in sys.stdin:
            index, seconds = json.loads(line)
            answer({"seconds": cases[index].seconds(seconds), "graph": cases[index].graph})
    return 0


if __name__ == "__main__":
    sys.exit(main())
