"""Dual encoders: one graph for images and one for texts, whose vectors are compared."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

from tokenfold.bundle.bundle import Bundle
from tokenfold.bundle.manifest import (
    IMAGE,
    TEXT,
    TOKENIZER,
    Level,
    Manifest,
    Similarity,
    TextSpec,
)
from tokenfold.bundle.preprocess import Pixels
from tokenfold.bundle.profile import LevelProfile
from tokenfold.export.families.family import Family, ManifestFields, ModelGraph
from tokenfold.export.graphs.dual import ImageGraph, TextGraph
from tokenfold.export.matchers import matchers
from tokenfold.export.quality.dual import Gallery, measure
from tokenfold.export.recipe import Recipe
from tokenfold.export.reference import DualReference
from tokenfold.export.stages import Workers
from tokenfold.export.verification.comparison import Answer, Answers
from tokenfold.export.verification.inputs import Texts, image_batches, text_batches
from tokenfold.models.checkpoints.checkpoint import DualCheckpoint
from tokenfold.runtime.dual import DualSession, Embedder


class DualFamily(Family[DualSession, Embedder]):
    """A dual encoder, such as CLIP or SigLIP."""

    kind = "dual"

    def __init__(self, checkpoint: DualCheckpoint, recipe: Recipe) -> None:
        """Check the recipe and list the images to measure on.

        Raises:
            RecipeError: the recipe has options for image-text networks.
            DataError: the images or their descriptions cannot be used.
        """
        self._checkpoint = checkpoint
        self._method = recipe.image_method
        self._proportional = recipe.proportional
        self.workload = checkpoint.model.config.workload(self._method)
        self._gallery = None
        if recipe.images is not None:
            self._gallery = Gallery.read(recipe.images)
            self.samples = len(self._gallery.photos)
        self.reference = DualReference(checkpoint, self._method, proportional=recipe.proportional)

    def graphs(self, dtype: torch.dtype) -> Iterator[tuple[str, ModelGraph]]:
        model, preprocess = self._checkpoint.model, self._checkpoint.preprocess
        layers = matchers(self._method, model.config.image)
        yield IMAGE, ImageGraph(model, preprocess, layers, self._proportional, dtype)
        yield TEXT, TextGraph(model, dtype)

    def write_tokenizer(self, folder: Path) -> None:
        self._checkpoint.text.save(folder / TOKENIZER)

    def manifest_fields(self) -> ManifestFields:
        model, text = self._checkpoint.model, self._checkpoint.text
        return {
            "preprocess": self._checkpoint.preprocess,
            "tasks": {"embed": ()},
            "proportional": self._proportional,
            "text": TextSpec(most_tokens=text.most_tokens, padding=text.padding),
            "similarity": Similarity(
                width=model.config.width,
                scale=float(model.logit_scale.detach().exp()),
                bias=float(model.logit_bias.detach()),
                scores=model.config.scores,
                template=self._checkpoint.template,
            ),
        }

    def open_session(self, bundle: Bundle, *, native: bool = True) -> DualSession:
        return DualSession(bundle, native=native)

    def answers(self, manifest: Manifest, network: Embedder) -> Answers:
        photos = self._gallery.photos if self._gallery else None
        images = image_batches(photos, manifest.preprocess)
        return dual_answers(network, images, text_batches(self._checkpoint.text))

    def measure(
        self, manifest: Manifest, session: DualSession, workers: Workers
    ) -> dict[str, LevelProfile]:
        assert self._gallery is not None
        text, reference = self._checkpoint.text, self.reference
        return measure(manifest, session, self._gallery, text, unreduced=reference, workers=workers)


def dual_answers(network: Embedder, batches: Sequence[Pixels], texts: Sequence[Texts]) -> Answers:
    """Return the vectors of a network for images and for texts.

    Args:
        batches: images (B, H, W, 3) uint8 of the network's input size.
        texts: embedded once, because no plan reduces them.
    """
    text_answer = Answer("texts", "vectors", [network.embed_texts(*batch) for batch in texts])

    def answers(level: Level) -> list[Answer]:
        vectors, slots = [], []
        for images in batches:
            output = network.embed_images(images, level.plan, slots=True)
            assert output.slots is not None
            vectors.append(output.vectors)
            slots.append(output.slots)
        return [text_answer, Answer("", "vectors", vectors, slots, level.tokens_out)]

    return answers
