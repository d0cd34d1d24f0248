"""`random:clip-vit-b16`, `random:siglip-b16` and others: dual encoders with random weights."""

from __future__ import annotations

import math
import re
from typing import NamedTuple

import torch

from tokenfold.bundle.text import word_level
from tokenfold.models.checkpoints import processors
from tokenfold.models.checkpoints.checkpoint import DualCheckpoint, network_config
from tokenfold.models.checkpoints.dual_kinds import CLIP, SIGLIP
from tokenfold.models.checkpoints.random import (
    DEFAULT_SIZE,
    PREFIX,
    SEED,
    SIZES,
    draw,
    parse_name,
    uninitialised,
)
from tokenfold.models.networks.dual import DualConfig, DualEncoder


class TextSize(NamedTuple):
    """Sizes of a text tower; see `TextConfig`."""

    vocabulary: int
    most_text: int
    dim: int
    depth: int
    heads: int
    mlp_dim: int


CLIPS = {
    "ti16": TextSize(1000, 77, 192, 4, 3, 768),
    "s16": TextSize(49408, 77, 384, 12, 6, 1536),
    "b32": TextSize(49408, 77, 512, 12, 8, 2048),
    "b16": TextSize(49408, 77, 512, 12, 8, 2048),
    "l14": TextSize(49408, 77, 768, 12, 12, 3072),
}
SIGLIPS = {
    "ti16": TextSize(1000, 64, 192, 4, 3, 768),
    "b16": TextSize(32000, 64, 768, 12, 12, 3072),
    "l16": TextSize(32000, 64, 1024, 24, 16, 4096),
}
MEMBERS = {f"clip-vit-{member}": text for member, text in CLIPS.items()}
MEMBERS |= {f"siglip-{member}": text for member, text in SIGLIPS.items()}
NAMES = tuple(MEMBERS)
NAME = re.compile(rf"(?P<network>{'|'.join(NAMES)})(?:-(?P<image>\d+))?")


def recognises(name: str) -> bool:
    """Whether a name, without `random:`, is a dual encoder, with or without an image size."""
    return NAME.fullmatch(name) is not None


def load(name: str) -> DualCheckpoint:
    """Return the network of a name such as `clip-vit-b16-384`, the same at every call.

    The vocabulary is `word0`, `word1` and so on.

    Raises:
        CheckpointError: there is no such network, or its patches do not tile the image size.
    """
    match, side = parse_name(NAME, name, NAMES, DEFAULT_SIZE)
    kind = CLIP if match["network"].startswith("clip") else SIGLIP
    member = match["network"].split("-")[-1]
    patch = member.lstrip("tisbl")
    dim, depth, heads, mlp_dim = SIZES[member.removesuffix(patch)]
    text = MEMBERS[match["network"]]
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
    model = uninitialised(lambda: DualEncoder(network))
    draw(model.image, SEED)
    draw(model.text, SEED)
    with torch.no_grad():
        model.logit_scale.fill_(math.log(100))
        model.logit_bias.fill_(0 if kind is CLIP else -10)
    words = [f"word{index}" for index in range(text.vocabulary - 4)]
    return DualCheckpoint(
        model.eval(),
        processors.default(kind.name, (side, side)),
        word_level(words, network.text.most_text, padded=network.text.padded),
        kind.template,
    )
