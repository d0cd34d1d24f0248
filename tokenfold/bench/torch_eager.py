"""Run a bundle's network in eager PyTorch, to compare its speed. Imports torch."""

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
from tokenfold.bundle.meter_workload import MeterWorkload
from tokenfold.bundle.pair_workload import PairWorkload
from tokenfold.bundle.workload import DualWorkload, Plan, Workload
from tokenfold.export.matchers import matchers
from tokenfold.export.reference import DualReference, PairReference, normalised
from tokenfold.models.checkpoints.checkpoint import DualCheckpoint, PairCheckpoint
from tokenfold.models.checkpoints.load import load, load_classifier
from tokenfold.models.networks.meter import Meter, merging_tower
from tokenfold.runtime.pair import Float, ask

ROOT = Path(__file__).resolve().parents[2]
"""Root of the repository; the manifests of its own bundles name sources relative to it."""

KEPT_BATCHES = 2
"""Number of batches that the network cycles through: float32 takes four times the memory."""

COMPARED = 4
"""Number of batches, and of images in each, whose logits are compared with the bundle's."""

OTHER_NETWORK = "the checkpoint is not the network that was exported"

TOLERANCE: dict[Precision, float] = {"fp32": 1e-3, "fp16": 0.5, "int8": 0.5}
"""Relative error of the logits, norm over norm, above which the weights count as different."""


def load_eager(bundle: Bundle, batch: int) -> Eager:
    """Load the network of a bundle of any kind.

    Args:
        batch: images per run.

    Raises:
        ValueError: the checkpoint cannot be loaded, or now holds another network.
    """
    inputs = random_inputs(bundle, batch)
    kinds: dict[Kind, type[ImageEager | PairEager | DualEager]] = {
        "classifier": ImageEager,
        "pair": PairEager,
        "dual": DualEager,
    }
    return kinds[bundle.manifest.kind](bundle.manifest, inputs)


class Eager(ABC):
    """The network with the weights of the bundle's checkpoint, in fp32.

    Normalising the images is not measured, although the bundle's graph does it, which favours
    PyTorch slightly.
    """

    def __init__(self, manifest: Manifest, inputs: Sequence[Any], batch: int) -> None:
        """Prepare the first few inputs; subclasses call this last.

        Args:
            inputs: inputs to run on; only the first few are kept.
            batch: images per input.
        """
        self.manifest = manifest
        self._batch = batch
        self._inputs = [self.prepared(batch_inputs) for batch_inputs in inputs[:KEPT_BATCHES]]

    @abstractmethod
    def prepared(self, inputs: Any) -> Any:
        """Convert an input of `subjects.random_inputs` to what the network takes."""

    @abstractmethod
    def logits(self, prepared: Any, plan: Plan) -> Float:
        """Return the logits (B, classes) of a prepared input."""

    def check(self, graphs: Graphs, inputs: Sequence[Any]) -> None:
        """Check that the unreduced logits equal the bundle's; raise ValueError otherwise.

        Raises:
            ValueError: the logits differ, so the checkpoint's weights have changed.
        """
        plan = self.manifest.workload.unreduced
        logits = np.concatenate(
            [
                self.logits(self.prepared(batch_inputs), plan)[:COMPARED]
                for batch_inputs in inputs[:COMPARED]
            ]
        )
        bundle_logits = np.concatenate(
            [graphs.run(batch_inputs, plan)[:COMPARED] for batch_inputs in inputs[:COMPARED]]
        )
        limit = TOLERANCE[self.manifest.precision]
        norm = max(float(np.linalg.norm(bundle_logits)), 1e-6)
        # Labels may have been added or removed since, which does not change the workload.
        error = (
            float(np.linalg.norm(logits - bundle_logits)) / norm
            if logits.shape == bundle_logits.shape
            else np.inf
        )
        # Written so that NaN is rejected.
        if not error <= limit:
            raise ValueError(
                f"the checkpoint no longer has the bundle's weights: its logits differ by "
                f"{error:.1e} of the bundle's norm, more than {limit:g}; export it again"
            )

    def subject(self, plan: Plan, callers: int, threads: int) -> Subject:
        """Return a subject that runs the network under a plan.

        Args:
            callers: threads that run it concurrently.
            threads: threads inside one run.
        """

        def run(run_number: int) -> object:
            # A setting of the calling thread only; setting it again is not free.
            if torch.get_num_threads() != threads:
                torch.set_num_threads(threads)
            return self.logits(self._inputs[run_number % len(self._inputs)], plan)

        return Subject(run, callers, self._batch)

    def normalised(self, images: Images) -> torch.Tensor:
        """Normalise images for the PyTorch network."""
        return normalised(images, self.manifest.preprocess).contiguous()


class ImageEager(Eager):
    """A network that classifies images."""

    def __init__(self, manifest: Manifest, inputs: Sequence[Images]) -> None:
        """See `load_eager`."""
        self._model = load_classifier(locate(manifest.source)).model
        config, workload = self._model.config, manifest.workload
        assert isinstance(workload, Workload)
        self._matchers = matchers(workload.method, config)
        if config.workload(workload.method) != workload:
            raise ValueError(OTHER_NETWORK)
        super().__init__(manifest, inputs, len(inputs[0]))

    def prepared(self, images: Images) -> torch.Tensor:
        """Return the normalised images, (B, 3, H, W)."""
        return self.normalised(images)

    def logits(self, prepared: torch.Tensor, plan: Plan) -> Float:
        """See `Eager`."""
        with torch.inference_mode():
            # Without a plan, run the plain network: no token sizes in the attention.
            layer_counts = plan if any(plan) else None
            proportional = self.manifest.proportional
            output = self._model(prepared, layer_counts, self._matchers, proportional=proportional)
        logits: Float = output.logits.numpy()
        return logits


class DualEager(Eager):
    """The image tower of a dual encoder."""

    def __init__(self, manifest: Manifest, inputs: Sequence[Images]) -> None:
        """See `load_eager`."""
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

    def prepared(self, images: Images) -> torch.Tensor:
        """Return the normalised images, (B, 3, H, W)."""
        return self.normalised(images)

    def logits(self, prepared: torch.Tensor, plan: Plan) -> Float:
        """Return embeddings (B, width); see `Eager`."""
        return self._reference.embed_normalised(prepared, plan).vectors


class PairEager(Eager):
    """A network that takes images with texts."""

    def __init__(self, manifest: Manifest, inputs: Sequence[Questions]) -> None:
        """See `load_eager`."""
        checkpoint = load(locate(manifest.source))
        workload = manifest.workload
        if not isinstance(checkpoint, PairCheckpoint) or not isinstance(workload, PairWorkload):
            raise ValueError(OTHER_NETWORK)
        if isinstance(workload, MeterWorkload) and isinstance(checkpoint.model, Meter):
            # The export decides how much ToMe removes in the tower; the checkpoint does not.
            merged = workload.vision_widths[0] - workload.vision_widths[1]
            checkpoint = checkpoint._replace(model=merging_tower(checkpoint.model, merged))
        exported_workload = checkpoint.model.config.workload(
            workload.method, text=workload.text, layers=workload.layers, rates=workload.rates
        )
        if exported_workload != workload:
            raise ValueError(OTHER_NETWORK)
        self._reference = PairReference(checkpoint, workload, weighted=manifest.weighted)
        super().__init__(manifest, inputs, len(inputs[0].ids))

    def prepared(self, questions: Questions) -> tuple[list[torch.Tensor], Questions]:
        """Return the normalised images, with the questions they belong to."""
        return [self.normalised(image_batch) for image_batch in questions.images], questions

    def logits(self, prepared: tuple[list[torch.Tensor], Questions], plan: Plan) -> Float:
        """See `Eager`."""
        images, questions = prepared
        with torch.inference_mode():
            embedded = [
                self._reference.embed_normalised(image_batch).numpy() for image_batch in images
            ]
        plans = [plan] * len(images)
        outputs = ask(
            self._reference, embedded, questions.ids, questions.size, plans, task=questions.task
        )
        logits = outputs[-1].logits
        assert logits is not None
        return logits


def locate(source: str) -> str:
    """Resolve a manifest's source relative to the current folder, or else to the repository."""
    in_repository = ROOT / source
    if not Path(source).exists() and in_repository.exists():
        return str(in_repository)
    return source
