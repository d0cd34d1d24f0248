"""The network of a bundle in eager PyTorch, to be measured beside the bundle. Imports torch."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from export.bundle import Manifest
from export.measure import Subject
from export.pipeline import matchers
from export.subjects import Images
from models.checkpoints.load import load
from models.reduction.schedule import Plan


class Eager:
    """The network with the weights of the checkpoint that the bundle came from, in fp32."""

    def __init__(self, manifest: Manifest) -> None:
        """Load the checkpoint again.

        Raises:
            ValueError: it cannot be loaded, or is another network than the bundle's by now.
        """
        checkpoint = load(manifest.source)
        self._model = checkpoint.model
        self._matchers = matchers(manifest.workload.method, self._model.config)
        self._proportional = manifest.proportional
        self._preprocess = manifest.preprocess
        if self._model.config.workload(manifest.workload.method) != manifest.workload:
            raise ValueError(f"{manifest.source} is not the network that was exported")

    def subject(self, batches: Sequence[Images], plan: Plan, callers: int, threads: int) -> Subject:
        """The network under a plan.

        Normalising the images is left out of what is measured, though the graph does it: that
        favours PyTorch a little.

        Args:
            callers: threads that run it at once.
            threads: inside one run.
        """
        mean, std = (torch.tensor(v) for v in (self._preprocess.mean, self._preprocess.std))
        inputs = [
            ((torch.from_numpy(batch) / 255 - mean) / std).permute(0, 3, 1, 2).contiguous()
            for batch in batches
        ]
        # Without a plan the network is the plain one: no sizes in the attention.
        counts = plan if any(plan) else None

        def run(turn: int) -> object:
            # Of the calling thread only; setting it again is not free.
            if torch.get_num_threads() != threads:
                torch.set_num_threads(threads)
            with torch.inference_mode():
                return self._model(
                    inputs[turn % len(inputs)],
                    counts,
                    self._matchers,
                    proportional=self._proportional,
                ).logits

        return Subject(run, callers, len(batches[0]))
