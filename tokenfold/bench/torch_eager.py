"""The network of a bundle in eager PyTorch, to be measured beside the bundle. Imports torch."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tokenfold.bench.measure import Subject
from tokenfold.bench.subjects import Graphs, Images, Questions, random_inputs
from tokenfold.bundle.bundle import Bundle
from tokenfold.bundle.manifest import Kind, Manifest, Precision
from tokenfold.bundle.pair_workload import MeterWorkload, PairWorkload
from tokenfold.bundle.workload import DualWorkload, Plan, Workload
from tokenfold.export.matchers import matchers
from tokenfold.export.reference import DualReference, PairReference, normalised
from tokenfold.models.checkpoints.checkpoint import DualCheckpoint, PairCheckpoint
from tokenfold.models.checkpoints.load import load, load_classifier
from tokenfold.models.networks.meter import Meter, merging_tower
from tokenfold.runtime.pair import Float, ask

ROOT = Path(__file__).resolve().parents[2]
"""What holds the packages: the repository, whose own bundles name their source relative to it."""

HELD = 2
"""Batches that the network takes turns with: as float32 each is four times the graph's."""

COMPARED = 4
"""Batches, and images of each, whose logits are compared with the bundle's."""

OTHER_NETWORK = "it is not the network that was exported"

TOLERANCE: dict[Precision, float] = {"fp32": 1e-3, "fp16": 0.5, "int8": 0.5}
"""Relative error of the logits, norm over norm, from which on the weights are other ones."""


def eager(bundle: Bundle, batch: int) -> Eager:
    """The network of a bundle, of any kind.

    Args:
        batch: images of one run.

    Raises:
        ValueError: it cannot be loaded, or is another network than the bundle's by now.
    """
    inputs = random_inputs(bundle, batch)
    kinds: dict[Kind, type[ImageEager | PairEager | DualEager]] = {
        "classifier": ImageEager,
        "pair": PairEager,
        "dual": DualEager,
    }
    return kinds[bundle.manifest.kind](bundle.manifest, inputs)


class Eager(ABC):
    """The network with the weights of the checkpoint that the bundle came from, in fp32.

    Normalising the images is left out of what is measured, though the graph does it: that favours
    PyTorch a little.
    """

    def __init__(self, manifest: Manifest, inputs: Sequence[Any], batch: int) -> None:
        """Args:
        inputs: to run on; the first few are kept.
        batch: images of each.
        """
        self.manifest = manifest
        self._batch = batch
        self._inputs = [self.prepared(one) for one in inputs[:HELD]]

    @abstractmethod
    def prepared(self, given: Any) -> Any:
        """One of `subjects.random_inputs` as the network takes it."""

    @abstractmethod
    def logits(self, prepared: Any, plan: Plan) -> Float:
        """Logits (B, classes) of a prepared input."""

    def check(self, graphs: Graphs, inputs: Sequence[Any]) -> None:
        """Compare with the bundle, nothing reduced.

        Raises:
            ValueError: the logits differ: the checkpoint has other weights by now.
        """
        plan = self.manifest.workload.unreduced
        own = np.concatenate(
            [self.logits(self.prepared(one), plan)[:COMPARED] for one in inputs[:COMPARED]]
        )
        theirs = np.concatenate([graphs.run(one, plan)[:COMPARED] for one in inputs[:COMPARED]])
        limit = TOLERANCE[self.manifest.precision]
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
            return self.logits(self._inputs[turn % len(self._inputs)], plan)

        return Subject(run, callers, self._batch)

    def normalised(self, images: Images) -> torch.Tensor:
        """Images as the network in PyTorch takes them."""
        return normalised(images, self.manifest.preprocess).contiguous()


class ImageEager(Eager):
    """A network that classifies images."""

    def __init__(self, manifest: Manifest, inputs: Sequence[Images]) -> None:
        """See `eager`."""
        self._model = load_classifier(locate(manifest.source)).model
        config, workload = self._model.config, manifest.workload
        assert isinstance(workload, Workload)
        self._matchers = matchers(workload.method, config)
        if config.workload(workload.method) != workload:
            raise ValueError(OTHER_NETWORK)
        super().__init__(manifest, inputs, len(inputs[0]))

    def prepared(self, given: Images) -> torch.Tensor:
        """(B, 3, H, W), normalised."""
        return self.normalised(given)

    def logits(self, prepared: torch.Tensor, plan: Plan) -> Float:
        """See `Eager`."""
        with torch.inference_mode():
            # Without a plan the network is the plain one: no sizes in the attention.
            counts = plan if any(plan) else None
            proportional = self.manifest.proportional
            found = self._model(prepared, counts, self._matchers, proportional=proportional)
        logits: Float = found.logits.numpy()
        return logits


class DualEager(Eager):
    """The image tower of a dual encoder."""

    def __init__(self, manifest: Manifest, inputs: Sequence[Images]) -> None:
        """See `eager`."""
        checkpoint = load(locate(manifest.source))
        workload = manifest.workload
        if not isinstance(checkpoint, DualCheckpoint) or not isinstance(workload, DualWorkload):
            raise ValueError(OTHER_NETWORK)
        if checkpoint.model.config.workload(workload.method) != workload:
            raise ValueError(OTHER_NETWORK)
        self._reference = DualReference(
            checkpoint, workload.method, proportional=manifest.proportional
        )
        super().__init__(manifest, inputs, len(inputs[0]))

    def prepared(self, given: Images) -> torch.Tensor:
        """(B, 3, H, W), normalised."""
        return self.normalised(given)

    def logits(self, prepared: torch.Tensor, plan: Plan) -> Float:
        """Vectors (B, width); see `Eager`."""
        return self._reference.embed_normalised(prepared, plan).vectors


class PairEager(Eager):
    """A network that takes images with texts."""

    def __init__(self, manifest: Manifest, inputs: Sequence[Questions]) -> None:
        """See `eager`."""
        checkpoint = load(locate(manifest.source))
        workload = manifest.workload
        if not isinstance(checkpoint, PairCheckpoint) or not isinstance(workload, PairWorkload):
            raise ValueError(OTHER_NETWORK)
        if isinstance(workload, MeterWorkload) and isinstance(checkpoint.model, Meter):
            # What ToMe removes in the tower is an option of the export, not of the checkpoint.
            merged = workload.vision_widths[0] - workload.vision_widths[1]
            checkpoint = checkpoint._replace(model=merging_tower(checkpoint.model, merged))
        own = checkpoint.model.config.workload(
            workload.method, text=workload.text, layers=workload.layers, rates=workload.rates
        )
        if own != workload:
            raise ValueError(OTHER_NETWORK)
        self._reference = PairReference(checkpoint, workload, weighted=manifest.weighted)
        super().__init__(manifest, inputs, len(inputs[0].ids))

    def prepared(self, given: Questions) -> tuple[list[torch.Tensor], Questions]:
        """The images normalised, beside what they came with."""
        return [self.normalised(side) for side in given.images], given

    def logits(self, prepared: tuple[list[torch.Tensor], Questions], plan: Plan) -> Float:
        """See `Eager`."""
        images, given = prepared
        with torch.inference_mode():
            embedded = [self._reference.embed_normalised(side).numpy() for side in images]
        plans = [plan] * len(images)
        found = ask(self._reference, embedded, given.ids, given.size, plans, task=given.task)
        logits = found[-1].logits
        assert logits is not None
        return logits


def locate(source: str) -> str:
    """A manifest's source as it is found from the current folder, or else from the repository."""
    beside = ROOT / source
    return str(beside) if not Path(source).exists() and beside.exists() else source
