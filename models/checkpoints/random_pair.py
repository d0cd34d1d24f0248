"""`random:vilt-b32`, `random:meter-b16-384` and others: ViLT and METER with random weights."""

from __future__ import annotations

import re
from typing import Any

from tokenfold.bundle.preprocess import Preprocess
from tokenfold.bundle.text import word_level
from tokenfold.models.checkpoints import meter
from tokenfold.models.checkpoints.checkpoint import (
    PairCheckpoint,
    network_config,
    numbered_labels,
)
from tokenfold.models.checkpoints.random import PREFIX, SEED, draw, parse_name, uninitialised
from tokenfold.models.networks.meter import Meter, MeterConfig
from tokenfold.models.networks.pair import HeadConfig
from tokenfold.models.networks.vilt import Vilt, ViltConfig

# Width, heads, hidden width of the MLPs.
METER_SIZES = {"ti": (192, 3, 768), "s": (384, 6, 1536), "b": (768, 12, 3072)}
NAMES = ("vilt-b32", *(f"meter-{size}16" for size in METER_SIZES))
NAME = re.compile(
    rf"(?P<network>vilt-b32|meter-(?P<size>{'|'.join(METER_SIZES)})16)(?:-(?P<image>\d+))?"
)
VILT_SIZE, METER_SIZE = 384, 288
ANSWERS = 3129


def recognises(name: str) -> bool:
    """Whether a name, without `random:`, is a ViLT or a METER, with or without an image size."""
    return NAME.fullmatch(name) is not None


def load(name: str) -> PairCheckpoint:
    """Return the network of a name such as `vilt-b32` or `meter-b16-384`, the same at every call.

    The vocabulary is `word0`, `word1` and so on. The head answers questions with 3129 logits, like
    a network that was trained on VQAv2. Images are stretched to the network's size, as PuMer's
    networks take them. METER has PuMer's form, which the published times refer to.

    Raises:
        CheckpointError: there is no such network, or its patches do not tile the image size.
    """
    is_vilt = name.startswith("vilt")
    match, side = parse_name(NAME, name, NAMES, VILT_SIZE if is_vilt else METER_SIZE)
    return _vilt(name, side) if is_vilt else _meter(name, match["size"], side)


def _vilt(name: str, side: int) -> PairCheckpoint:
    network = network_config(
        ViltConfig,
        f"{PREFIX}{name}",
        image_size=(side, side),
        heads={"vqa": _head(1536)},
    )
    model = uninitialised(lambda: Vilt(network))
    preprocess = Preprocess(size=network.image_size, interpolation="bilinear")
    return _checkpoint(model, preprocess, weighted=True)


def _meter(name: str, size: str, side: int) -> PairCheckpoint:
    dim, heads, mlp_dim = METER_SIZES[size]
    network = network_config(
        MeterConfig,
        f"{PREFIX}{name}",
        form="sequential",
        protect_class=False,
        image_size=(side, side),
        dim=dim,
        heads_per_layer=heads,
        mlp_dim=mlp_dim,
        heads={"vqa": _head(2 * dim)},
    )
    model = uninitialised(lambda: Meter(network))
    return _checkpoint(model, meter.preprocess(network, stretched=True), weighted=False)


def _head(hidden: int) -> HeadConfig:
    fields: dict[str, Any] = {"classes": ANSWERS, "hidden": hidden, "scores": "sigmoid"}
    return HeadConfig(**fields)


def _checkpoint(model: Vilt | Meter, preprocess: Preprocess, *, weighted: bool) -> PairCheckpoint:
    draw(model, SEED)
    network = model.config
    words = [f"word{index}" for index in range(network.vocabulary - 4)]
    return PairCheckpoint(
        model.eval(),
        preprocess,
        {"vqa": numbered_labels(ANSWERS)},
        word_level(words, network.most_text),
        weighted=weighted,
    )
