"""The network of a bundle in eager PyTorch, to be measured beside the bundle. Imports torch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from export.bench.measure import Subject
from export.bench.subjects import Images
from export.bundle import Manifest, Precision
from export.pipeline import matchers
from export.runtime import Session
from export.verify import normalised
from models.checkpoints.load import load
from models.reduction.workload import Plan

ROOT = Path(__file__).resolve().parents[2]
"""What holds the packages: the repository, whose own bundles name their source relative to it."""

HELD = 2
"""Batches that the network takes turns with: as float32 each is four times the graph's."""

COMPARED = 4
"""Images whose logits are compared with the bundle's."""

TOLERANCE: dict[Precision, float] = {"fp32": 1e-3, "fp16": 0.5, "int8": 0.5}
"""Relative error of the logits, norm over norm, from which on the weights are other ones."""


class Eager:
    """The network with the weights of the checkpoint that the bundle came from, in fp32."""

    def __init__(self, manifest: Manifest, batches: Sequence[Images]) -> None:
        """Load the checkpoint again.

        Normalising the images is left out of what is measured, though the graph does it: that
        favours PyTorch a little.

        Args:
            batches: to run on; the first few are kept.

        Raises:
            ValueError: it cannot be loaded, or is another network than the bundle's by now.
        """
        self._manifest = manifest
        self._model = load(locate(manifest.source)).model
        self._matchers = matchers(manifest.workload.method, self._model.config)
        if self._model.config.workload(manifest.workload.method) != manifest.workload:
            raise ValueError("it is not the network that was exported")
        self._batch = len(batches[0])
        self._inputs = [self._normalised(batch) for batch in batches[:HELD]]

    def check(self, session: Session, batches: Sequence[Images]) -> None:
        """Compare with the bundle, nothing reduced.

        Raises:
            ValueError: the logits differ: the checkpoint has other weights by now.
        """
        plan = (0,) * self._manifest.workload.depth
        images = np.stack([batch[0] for batch in batches[:COMPARED]])
        own = self._logits(self._normalised(images), plan).numpy()
        theirs = session.run(images, plan).logits
        limit = TOLERANCE[self._manifest.precision]
        size = max(float(np.linalg.norm(theirs)), 1e-6)
        # Labels may have been added or removed since, which leaves the workload as it was.
        off = float(np.linalg.norm(own - theirs)) / size if own.shape == theirs.shape else np.inf
        # Written so that NaN is refused.
        if not off <= limit:
            raise ValueError(
                f"it no longer has the bundle's weights: its logits are off by {off:.1e} of the "
                f"bundle's norm, more than {limit:g}; export it again"
            )

    def subject(self, plan: Plan, callers: int, threads: int) -> Subject:
        """The network under a plan.

        Args:
            callers: threads that run it at once.
            threads: inside one run.
        """

        def run(turn: int) -> object:
            # Of the calling thread only; setting it again is not free.
            if torch.get_num_threads() != threads:
                torch.set_num_threads(threads)
            return self._logits(self._inputs[turn % len(self._inputs)], plan)

        return Subject(run, callers, self._batch)

    def _logits(self, pixels: torch.Tensor, plan: Plan) -> torch.Tensor:
        with torch.inference_mode():
            # Without a plan the network is the plain one: no sizes in the attention.
            counts = plan if any(plan) else None
            proportional = self._manifest.proportional
            found = self._model(pixels, counts, self._matchers, proportional=proportional)
        logits: torch.Tensor = found.logits
        return logits

    def _normalised(self, images: Images) -> torch.Tensor:
        return normalised(images, self._manifest.preprocess).contiguous()


def locate(source: str) -> str:
    """A manifest's source as it is found from the current folder, or else from the repository."""
    beside = ROOT / source
    return str(beside) if not Path(source).exists() and beside.exists() else source
