"""`random:vilt-b32` and the like: networks for images and texts with seeded random weights."""

from __future__ import annotations

import re

import torch

from tokenfold.bundle.preprocess import Preprocess
from tokenfold.bundle.text import word_level
from tokenfold.models.checkpoints.checkpoint import CheckpointError, PairCheckpoint, network_config
from tokenfold.models.checkpoints.random import LARGEST_SIZE, PREFIX, SEED, draw
from tokenfold.models.pair import HeadConfig
from tokenfold.models.vilt import Vilt, ViltConfig

VILT = "vilt-b32"
NAMES = (VILT,)
NAME = re.compile(rf"({'|'.join(NAMES)})(?:-(\d+))?")
ANSWERS = 3129


def recognises(name: str) -> bool:
    """Whether a name, without `random:`, is that of such a network, perhaps with an image size."""
    return NAME.fullmatch(name) is not None


def load(name: str) -> PairCheckpoint:
    """The network of a name such as `vilt-b32` or `vilt-b32-224`, the same at every call.

    Its words are `word0` and so on; it answers questions as one trained on VQAv2 does, with 3129
    logits. Images are stretched to its size, as PuMer's own networks take them.

    Raises:
        CheckpointError: no such network, or an image size that its patches do not tile.
    """
    found = NAME.fullmatch(name)
    if found is None:
        raise CheckpointError(f"{PREFIX}{name}: no such network; there are {', '.join(NAMES)}")
    side = int(found[2] or 384)
    if side > LARGEST_SIZE:
        raise CheckpointError(f"{PREFIX}{name}: images are at most {LARGEST_SIZE} pixels wide")
    network = network_config(
        ViltConfig,
        f"{PREFIX}{name}",
        image_size=(side, side),
        heads={"vqa": HeadConfig(classes=ANSWERS, hidden=1536, scores="sigmoid")},
    )
    # On no device first: drawing the weights of a large network twice takes seconds.
    with torch.device("meta"):
        model = Vilt(network)
    model.to_empty(device="cpu")
    draw(model, SEED)
    preprocess = Preprocess(size=network.image_size, interpolation="bilinear")
    words = [f"word{index}" for index in range(network.vocabulary - 4)]
    return PairCheckpoint(
        model.eval(),
        preprocess,
        {"vqa": tuple(f"LABEL_{index}" for index in range(ANSWERS))},
        word_level(words, network.most_text),
        weighted=True,
    )
