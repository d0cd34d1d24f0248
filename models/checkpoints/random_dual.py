"""`random:clip-vit-b16`, `random:siglip-b16` and the like: two towers of seeded random weights."""

from __future__ import annotations

import math
import re
from typing import NamedTuple

import torch

from tokenfold.bundle.text import word_level
from tokenfold.models.checkpoints import processors
from tokenfold.models.checkpoints.checkpoint import CheckpointError, DualCheckpoint, network_config
from tokenfold.models.checkpoints.dual_kinds import CLIP, SIGLIP
from tokenfold.models.checkpoints.random import (
    DEFAULT_SIZE,
    LARGEST_SIZE,
    PREFIX,
    SEED,
    SIZES,
    draw,
)
from tokenfold.models.dual import DualConfig, DualEncoder


class Text(NamedTuple):
    """A text tower's vocabulary, its most tokens, width, layers, heads and width of the MLPs."""

    vocabulary: int
    most_text: int
    dim: int
    depth: int
    heads: int
    mlp_dim: int


CLIPS = {
    "ti16": Text(1000, 77, 192, 4, 3, 768),
    "s16": Text(49408, 77, 384, 12, 6, 1536),
    "b32": Text(49408, 77, 512, 12, 8, 2048),
    "b16": Text(49408, 77, 512, 12, 8, 2048),
    "l14": Text(49408, 77, 768, 12, 12, 3072),
}
SIGLIPS = {
    "ti16": Text(1000, 64, 192, 4, 3, 768),
    "b16": Text(32000, 64, 768, 12, 12, 3072),
    "l16": Text(32000, 64, 1024, 24, 16, 4096),
}
MEMBERS = {f"clip-vit-{member}": text for member, text in CLIPS.items()}
MEMBERS |= {f"siglip-{member}": text for member, text in SIGLIPS.items()}
NAMES = tuple(MEMBERS)
NAME = re.compile(rf"(?P<network>{'|'.join(NAMES)})(?:-(?P<image>\d+))?")


def recognises(name: str) -> bool:
    """Whether a name, without `random:`, is that of such a network, perhaps with an image size."""
    return NAME.fullmatch(name) is not None


def load(name: str) -> DualCheckpoint:
    """The network of a name such as `clip-vit-b16` or `siglip-b16-384`, the same at every call.

    Its words are `word0` and so on.

    Raises:
        CheckpointError: no such network, or an image size that its patches do not tile.
    """
    found = NAME.fullmatch(name)
    if found is None:
        raise CheckpointError(f"{PREFIX}{name}: no such network; there are {', '.join(NAMES)}")
    side = int(found["image"] or DEFAULT_SIZE)
    if side > LARGEST_SIZE:
        raise CheckpointError(f"{PREFIX}{name}: images are at most {LARGEST_SIZE} pixels wide")
    kind = CLIP if found["network"].startswith("clip") else SIGLIP
    member = found["network"].split("-")[-1]
    patch = member.lstrip("tisbl")
    dim, depth, heads, mlp_dim = SIZES[member.removesuffix(patch)]
    text = MEMBERS[found["network"]]
    image = {
        "image_size": (side, side),
        "patch_size": int(patch),
        "dim": dim,
        "depth": depth,
        "heads": heads,
        "mlp_dim": mlp_dim,
        "classes": text.dim,
    }
    network = network_config(
        DualConfig,
        f"{PREFIX}{name}",
        image=image | kind.image,
        text=text._asdict() | {"classes": text.dim} | kind.text,
        scores=kind.scores,
    )
    # On no device first: drawing the weights of a large network twice takes seconds.
    with torch.device("meta"):
        model = DualEncoder(network)
    model.to_empty(device="cpu")
    draw(model.image, SEED)
    draw(model.text, SEED)
    with torch.no_grad():
        model.logit_scale.fill_(math.log(100))
        model.logit_bias.fill_(0 if kind is CLIP else -10)
    words = [f"word{index}" for index in range(text.vocabulary - 4)]
    return DualCheckpoint(
        model.eval(),
        processors.usual(kind.name, (side, side)),
        word_level(words, network.text.most_text, padded=network.text.padded),
        kind.template,
    )
