"""`random:meter-b16-384` and the like: a METER with seeded random weights."""

from __future__ import annotations

import re

import torch

from tokenfold.bundle.text import word_level
from tokenfold.models.checkpoints import meter
from tokenfold.models.checkpoints.checkpoint import CheckpointError, PairCheckpoint, network_config
from tokenfold.models.checkpoints.random import LARGEST_SIZE, PREFIX, SEED, draw
from tokenfold.models.meter import Meter, MeterConfig
from tokenfold.models.pair import HeadConfig

# Width, heads, hidden width of the MLPs.
SIZES = {"ti": (192, 3, 768), "s": (384, 6, 1536), "b": (768, 12, 3072)}
NAME = re.compile(rf"meter-({'|'.join(SIZES)})16(?:-(\d+))?")
NAMES = tuple(f"meter-{size}16" for size in SIZES)
DEFAULT_SIZE = 288
ANSWERS = 3129


def recognises(name: str) -> bool:
    """Whether a name, without `random:`, is that of such a network, perhaps with an image size."""
    return NAME.fullmatch(name) is not None


def load(name: str) -> PairCheckpoint:
    """The network of a name such as `meter-b16` or `meter-b16-384`, the same at every call.

    Its words are `word0` and so on; it answers questions as one trained on VQAv2 does, with 3129
    logits. It is of PuMer's form, which its published times are of.

    Raises:
        CheckpointError: no such network, or an image size that its patches do not tile.
    """
    found = NAME.fullmatch(name)
    if found is None:
        raise CheckpointError(f"{PREFIX}{name}: no such network; there are {', '.join(NAMES)}")
    dim, heads, mlp_dim = SIZES[found[1]]
    side = int(found[2] or DEFAULT_SIZE)
    if side > LARGEST_SIZE:
        raise CheckpointError(f"{PREFIX}{name}: images are at most {LARGEST_SIZE} pixels wide")
    network = network_config(
        MeterConfig,
        f"{PREFIX}{name}",
        form="sequential",
        protect_class=False,
        image_size=(side, side),
        dim=dim,
        heads_per_layer=heads,
        mlp_dim=mlp_dim,
        heads={"vqa": HeadConfig(classes=ANSWERS, hidden=2 * dim, scores="sigmoid")},
    )
    # On no device first: drawing the weights of a large network twice takes seconds.
    with torch.device("meta"):
        model = Meter(network)
    model.to_empty(device="cpu")
    draw(model, SEED)
    words = [f"word{index}" for index in range(network.vocabulary - 4)]
    return PairCheckpoint(
        model.eval(),
        meter.preprocess(network, stretched=True),
        {"vqa": tuple(f"LABEL_{index}" for index in range(ANSWERS))},
        word_level(words, network.most_text),
        weighted=False,
    )
