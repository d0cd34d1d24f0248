"""Image-text networks: one graph for images, and one that combines an image with a text."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from pydantic import ValidationError

from tokenfold.bundle.bundle import Bundle
from tokenfold.bundle.manifest import (
    JOINT,
    TOKENIZER,
    VISION,
    Level,
    Manifest,
    TextSpec,
)
from tokenfold.bundle.meter_workload import MeterWorkload
from tokenfold.bundle.pair_workload import ViltWorkload
from tokenfold.bundle.profile import LevelProfile
from tokenfold.bundle.tasks import PairTask
from tokenfold.bundle.workload import Plan
from tokenfold.export.families.family import Family, ManifestFields, ModelGraph
from tokenfold.export.graphs.pair import JointGraph, VisionGraph
from tokenfold.export.quality.pair import Items, measure
from tokenfold.export.recipe import Recipe, RecipeError
from tokenfold.export.reference import PairReference
from tokenfold.export.stages import Workers
from tokenfold.export.verification.comparison import Answer, Answers
from tokenfold.export.verification.inputs import Case, pair_batches
from tokenfold.models.checkpoints.checkpoint import PairCheckpoint
from tokenfold.models.networks.meter import Meter, merging_tower
from tokenfold.models.networks.pair import images as images_of
from tokenfold.models.networks.vilt import Vilt
from tokenfold.runtime.pair import Float, Int, PairOutput, PairRunner, PairSession, ask


class PairFamily(Family[PairSession, PairRunner]):
    """An image-text network, such as ViLT or METER."""

    kind = "pair"
    workload: ViltWorkload | MeterWorkload

    def __init__(self, checkpoint: PairCheckpoint, recipe: Recipe) -> None:
        """Check the recipe and list the items to measure on.

        Raises:
            RecipeError: the method, layers, rates or tower do not fit the network.
            DataError: the images or their items cannot be used.
        """
        if recipe.tower:
            if not isinstance(checkpoint.model, Meter):
                raise RecipeError("--tower: only METER has an image tower that ToMe can reduce")
            checkpoint = checkpoint._replace(model=merging_tower(checkpoint.model, recipe.tower))
        self._checkpoint = checkpoint
        self.workload = pair_workload(checkpoint, recipe)
        self._weighted = checkpoint.weighted if recipe.weighted is None else recipe.weighted
        self._items = None
        if recipe.images is not None:
            self._items = Items(recipe.images, checkpoint.labels)
            self.samples = len(self._items)
        self.reference = PairReference(checkpoint, self.workload, weighted=self._weighted)

    def graphs(self, dtype: torch.dtype) -> Iterator[tuple[str, ModelGraph]]:
        model = self._checkpoint.model
        yield VISION, VisionGraph(model, self._checkpoint.preprocess, dtype)
        yield JOINT, JointGraph(model, self.workload, weighted=self._weighted, dtype=dtype)

    def write_tokenizer(self, folder: Path) -> None:
        self._checkpoint.text.save(folder / TOKENIZER)

    def manifest_fields(self) -> ManifestFields:
        heads = self._checkpoint.model.config.heads
        return {
            "preprocess": self._checkpoint.preprocess,
            "tasks": dict(self._checkpoint.labels.items()),
            "scores": {
                task: head.scores for task, head in heads.items() if head.scores != "softmax"
            },
            "text": TextSpec(most_tokens=self._checkpoint.text.most_tokens),
            "weighted": self._weighted,
        }

    def open_session(self, bundle: Bundle, *, native: bool = True) -> PairSession:
        return PairSession(bundle, native=native)

    def answers(self, manifest: Manifest, network: PairRunner) -> Answers:
        config = self._checkpoint.model.config
        patch = config.patch_size if isinstance(self._checkpoint.model, Vilt) else None
        cases = pair_batches(self._checkpoint.text, config.image_size, patch=patch)
        return pair_answers(manifest, network, cases)

    def measure(
        self, manifest: Manifest, session: PairSession, workers: Workers
    ) -> dict[str, LevelProfile]:
        assert self._items is not None
        text, reference = self._checkpoint.text, self.reference
        return measure(manifest, session, self._items, text, unreduced=reference, workers=workers)


def pair_workload(checkpoint: PairCheckpoint, recipe: Recipe) -> ViltWorkload | MeterWorkload:
    """Return the workload of the network with its longest text.

    Raises:
        RecipeError: the method, layers or rates do not fit the network.
    """
    method = recipe.method or "pumer"
    if method == "pitome":
        raise RecipeError("image-text networks take the methods none, tome and pumer, not pitome")
    if not recipe.proportional:
        raise RecipeError(
            "--no-proportional is for image networks; use --plain to ignore sizes in attention and "
            "merging of an image-text network"
        )
    try:
        return checkpoint.model.config.workload(
            method, text=checkpoint.text.most_tokens, layers=recipe.layers, rates=recipe.rates
        )
    except ValidationError as error:
        raise RecipeError("; ".join(problem["msg"] for problem in error.errors())) from error


def pair_answers(manifest: Manifest, network: PairRunner, cases: Sequence[Case]) -> Answers:
    """Return the logits of a network for image-text inputs, one answer per task.

    Images are embedded once, because no plan reduces them.
    """
    embedded = [[network.embed(side) for side in (case.left, case.right)] for case in cases]

    def answer(task: PairTask, plans: Sequence[Plan]) -> Answer:
        logits, slots = [], []
        for case, images, plan in zip(cases, embedded, plans, strict=True):
            count = images_of(task)
            outputs = ask(
                network, images[:count], case.ids, case.size, [plan] * count, task=task, slots=True
            )
            logits.append(_logits(outputs[-1]))
            slots.append(np.concatenate([_slots(output, case) for output in outputs], axis=1))
        return Answer(task, "logits", logits, slots)

    def answers(level: Level) -> list[Answer]:
        plans = [
            manifest.plan(level, text=case.ids.shape[1], image=images[0].shape[1])
            for case, images in zip(cases, embedded, strict=True)
        ]
        return [answer(task, plans) for task in manifest.pair_tasks]

    return answers


def _logits(output: PairOutput) -> Float:
    assert output.logits is not None
    return output.logits


def _slots(output: PairOutput, case: Case) -> Int:
    """Return text and image slots side by side, (B, T + I).

    Padding has slot -1: implementations may move it anywhere.
    """
    assert output.text_slots is not None
    assert output.image_slots is not None
    text = np.where(case.size > 0, output.text_slots, -1)
    return np.concatenate([text, output.image_slots], axis=1)
