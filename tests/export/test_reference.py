"""PyTorch references have the methods of sessions and the outputs of the networks."""

from __future__ import annotations

import numpy as np
import torch

from tests import tiny
from tokenfold.bundle.text import random_texts
from tokenfold.export.reference import (
    ClassifierReference,
    DualReference,
    PairReference,
    normalised,
)
from tokenfold.export.verification.inputs import random_images


def test_pixels_are_normalised_by_channel() -> None:
    images = np.zeros((1, 2, 3, 3), np.uint8)
    images[..., 1] = 255
    x = normalised(images, tiny.PREPROCESS)
    assert x.shape == (1, 3, 2, 3)
    mean, std = tiny.PREPROCESS.mean, tiny.PREPROCESS.std
    expected = [-mean[0] / std[0], (1 - mean[1]) / std[1], -mean[2] / std[2]]
    torch.testing.assert_close(x[0, :, 0, 0], torch.tensor(expected))


def test_classifiers_return_slots_only_on_request() -> None:
    checkpoint, images = tiny.checkpoint(), random_images(tiny.SIZE, 2)
    reference = ClassifierReference(checkpoint, "tome", proportional=True)
    output = reference.run(images, (2, 2, 2), slots=True)
    assert output.slots is not None
    assert output.slots.max() == 17 - 6 - 1
    assert reference.run(images, (2, 2, 2)).slots is None
    with torch.inference_mode():
        expected = checkpoint.model(normalised(images, checkpoint.preprocess)).logits.numpy()
    unreduced = reference.run(images, (0, 0, 0)).logits
    np.testing.assert_array_equal(unreduced, expected)


def test_dual_encoders_return_unit_vectors() -> None:
    checkpoint = tiny.dual_checkpoint()
    reference = DualReference(checkpoint, "tome", proportional=True)
    images = reference.embed_images(random_images(tiny.SIZE, 2), (2, 2, 2), slots=True)
    texts = reference.embed_texts(*random_texts(checkpoint.text, (5, 3), 0))
    for vectors in (images.vectors, texts):
        np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    assert images.slots is not None


def test_a_plan_of_zeros_is_the_unreduced_pair_network() -> None:
    checkpoint = tiny.pair_checkpoint()
    config = checkpoint.model.config
    images = random_images(tiny.SIZE, 2)
    ids, size = random_texts(checkpoint.text, (7, 4), 0)
    outputs = []
    for method in ("pumer", "none"):
        workload = config.workload(method)
        reference = PairReference(checkpoint, workload, weighted=True)
        tokens = reference.embed(images)
        outputs.append(reference.fuse(tokens, ids, size, workload.unreduced, task="vqa"))
    reducing, plain = outputs
    assert reducing.logits is not None
    assert plain.logits is not None
    np.testing.assert_array_equal(reducing.logits, plain.logits)
    assert reducing.text_slots is None
