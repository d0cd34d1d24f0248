"""Command-line arguments of `tokenfold export`."""

from __future__ import annotations

import argparse
import re
from pathlib import Path
from typing import get_args

from tokenfold.bundle.manifest import Precision
from tokenfold.bundle.schedule import DEFAULT_LEVELS, Ramp
from tokenfold.bundle.workload import Shape
from tokenfold.export.recipe import PUBLISHED, Amount, AnyMethod, Shares

_USUAL = ",".join(f"{name}={value:g}" for name, value in DEFAULT_LEVELS.items())


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = argparse.ArgumentParser(
        prog="tokenfold export",
        description="Turn a checkpoint into a bundle that `tokenfold serve` can serve.",
    )
    parser.add_argument(
        "source",
        metavar="SOURCE",
        help="a folder in Hugging Face, timm or Tokenfold format, a state-dict file, a hub id, "
        "or random:NAME, such as random:vit-s16: an architecture with seeded random weights",
    )
    parser.add_argument("--out", type=_path, required=True, help="folder to write the bundle to")
    parser.add_argument(
        "--name", help="name of the model in the service (default: name of the folder)"
    )
    parser.add_argument(
        "--method",
        choices=get_args(AnyMethod),
        help="token reduction method (default: pumer for image-text networks, tome for others)",
    )
    parser.add_argument(
        "--precision",
        choices=get_args(Precision),
        default="fp32",
        help="precision of the weights; int8 is for CPUs, fp16 for GPUs (default: fp32)",
    )
    parser.add_argument(
        "--levels",
        type=_levels,
        metavar="NAME=AMOUNT,...",
        help="levels to make. AMOUNT is the fraction of FLOPs to remove, 0 to 1; or tokens per "
        "layer for ToMe, as r8, or r16/-1 for r and inflection; or PuMer's shares of a layer's "
        "tokens to prune, to merge and of the text to merge, as 0.1/0.3/0.2; or one count per "
        f"layer, as 8+8+4+0 (default: {_USUAL}, smaller for a network that cannot remove as much, "
        f"and for PuMer also {PUBLISHED}, the checkpoint's own shares)",
    )
    parser.add_argument(
        "--default-level", help="level for requests that choose none (default: balanced)"
    )
    parser.add_argument(
        "--shape",
        choices=get_args(Shape),
        default="constant",
        help="distribution of the removed tokens over the layers (default: constant)",
    )
    parser.add_argument(
        "--no-proportional",
        action="store_true",
        help="let attention ignore token sizes; use it for MAE trained without ToMe",
    )
    merging = parser.add_mutually_exclusive_group()
    merging.add_argument(
        "--weighted",
        action="store_true",
        default=None,
        help="image-text networks: merge tokens weighted by size, and let attention count sizes "
        "(default: as the checkpoint was trained)",
    )
    merging.add_argument(
        "--plain",
        action="store_false",
        dest="weighted",
        default=None,
        help="image-text networks: merge tokens by plain mean, and let attention ignore sizes, as "
        "PuMer was published",
    )
    parser.add_argument(
        "--layers",
        type=_layers,
        metavar="LAYER,...",
        help="layers in which PuMer reduces, counted from 0 (default: the checkpoint's)",
    )
    parser.add_argument(
        "--rates",
        type=_rates,
        metavar="PRUNE/MERGE/TEXT",
        help="PuMer's shares, which a requested reduction scales together (default: the "
        "checkpoint's)",
    )
    parser.add_argument(
        "--tower",
        type=int,
        default=0,
        metavar="R",
        help="METER: tokens that ToMe removes in each layer of the image tower, at every level "
        "(default: 0)",
    )
    parser.add_argument(
        "--images",
        type=_path,
        help="folder or zip file of images, to verify with and to measure each level on. Measures "
        "accuracy of a classifier if folders are named after labels, accuracy of an image-text "
        "network and recall of a dual encoder if a file items.jsonl has questions with answers or "
        "descriptions; otherwise agreement with the unreduced network",
    )
    return parser


def _path(text: str) -> Path:
    return Path(text).expanduser()


def _layers(text: str) -> tuple[int, ...]:
    if not re.fullmatch(r"\d+(,\d+)*", text):
        raise argparse.ArgumentTypeError(
            f"{text!r} is not a list of layer numbers with commas between them, such as 2,4,6"
        )
    return tuple(int(part) for part in text.split(","))


def _rates(text: str) -> Shares:
    shares = _shares(text)
    if shares is None:
        raise argparse.ArgumentTypeError(
            f"{text!r} is not three shares from 0 to 1, such as 0.1/0.3/0.2"
        )
    return shares


def _shares(text: str) -> Shares | None:
    parts = text.split("/")
    try:
        shares = [float(part) for part in parts]
    except ValueError:
        return None
    return Shares(*shares) if len(parts) == 3 and all(0 <= x <= 1 for x in shares) else None


def _levels(text: str) -> dict[str, Amount]:
    levels: dict[str, Amount] = {}
    for part in text.split(","):
        name, separator, value = part.strip().partition("=")
        amount = _amount(value) if separator else None
        if amount is None:
            raise argparse.ArgumentTypeError(
                f"{part!r} is not NAME=AMOUNT with an amount such as 0.55 (0 to 1), r8, r16/-1, "
                "0.1/0.3/0.2 or 8+8+4+0"
            )
        if name in levels:
            raise argparse.ArgumentTypeError(f"duplicate level {name!r}")
        levels[name] = amount
    return levels


def _amount(text: str) -> Amount | None:
    if re.fullmatch(r"\d+(\+\d+)+", text):
        return tuple(int(count) for count in text.split("+"))
    ramp = re.fullmatch(r"r(\d+)(?:/(-?[\d.]+))?", text)
    try:
        if ramp:
            inflect = float(ramp[2] or 0)
            return Ramp(int(ramp[1]), inflect) if -1 <= inflect <= 1 else None
        reduction = float(text)
    except ValueError:
        return _shares(text)
    return reduction if 0.0 <= reduction <= 1.0 else None
