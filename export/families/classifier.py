"""Image classifiers: one graph, verified and measured on images."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch

from tokenfold.bundle.bundle import Bundle
from tokenfold.bundle.manifest import MODEL, Level, Manifest
from tokenfold.bundle.preprocess import Pixels
from tokenfold.bundle.profile import LevelProfile
from tokenfold.export.families.family import Family, ManifestFields, ModelGraph
from tokenfold.export.graphs.classifier import ClassifierGraph
from tokenfold.export.matchers import matchers
from tokenfold.export.quality.classifier import measure
from tokenfold.export.quality.photos import Photos
from tokenfold.export.recipe import Recipe
from tokenfold.export.reference import ClassifierNetwork, ClassifierReference
from tokenfold.export.stages import Workers
from tokenfold.export.verification.comparison import Answer, Answers
from tokenfold.export.verification.inputs import image_batches
from tokenfold.models.checkpoints.checkpoint import Checkpoint
from tokenfold.runtime.session import Session


class ClassifierFamily(Family[Session, ClassifierNetwork]):
    """An image classifier."""

    kind = "classifier"

    def __init__(self, checkpoint: Checkpoint, recipe: Recipe) -> None:
        """Check the recipe and list the images to measure on.

        Raises:
            RecipeError: the recipe has options for image-text networks.
            DataError: there are no images, or some are in folders that are no labels.
        """
        self._checkpoint = checkpoint
        self._method = recipe.image_method
        self._proportional = recipe.proportional
        self.workload = checkpoint.model.config.workload(self._method)
        self._photos = None
        if recipe.images is not None:
            self._photos = Photos(recipe.images, checkpoint.labels)
            self.samples = len(self._photos)
        self.reference = ClassifierReference(
            checkpoint, self._method, proportional=recipe.proportional
        )

    def graphs(self, dtype: torch.dtype) -> Iterator[tuple[str, ModelGraph]]:
        model, preprocess, _ = self._checkpoint
        layers = matchers(self._method, model.config)
        yield MODEL, ClassifierGraph(model, preprocess, layers, self._proportional, dtype)

    def manifest_fields(self) -> ManifestFields:
        return {
            "preprocess": self._checkpoint.preprocess,
            "tasks": {"classify": self._checkpoint.labels},
            "proportional": self._proportional,
        }

    def open_session(self, bundle: Bundle, *, native: bool = True) -> Session:
        return Session(bundle, native=native)

    def answers(self, manifest: Manifest, network: ClassifierNetwork) -> Answers:
        return classifier_answers(network, image_batches(self._photos, manifest.preprocess))

    def measure(
        self, manifest: Manifest, session: Session, workers: Workers
    ) -> dict[str, LevelProfile]:
        assert self._photos is not None
        return measure(manifest, session, self._photos, unreduced=self.reference, workers=workers)


def classifier_answers(network: ClassifierNetwork, batches: Sequence[Pixels]) -> Answers:
    """Return the logits of a network for batches of images (B, H, W, 3) uint8."""

    def answers(level: Level) -> list[Answer]:
        logits, slots = [], []
        for images in batches:
            output = network.run(images, level.plan, slots=True)
            assert output.slots is not None
            logits.append(output.logits)
            slots.append(output.slots)
        return [Answer("", "logits", logits, slots, level.tokens_out)]

    return answers
