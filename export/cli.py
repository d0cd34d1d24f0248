"""`tokenfold export`: a checkpoint becomes a bundle."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import get_args

from pydantic import ValidationError
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from tokenfold.bundle.bundle import Bundle, BundleError
from tokenfold.bundle.manifest import Precision
from tokenfold.bundle.schedule import DEFAULT_LEVELS, Ramp
from tokenfold.bundle.workload import PlanError, Shape
from tokenfold.bundle.writing import check_replaceable
from tokenfold.export.pipeline import export_bundle
from tokenfold.export.quality import DataError
from tokenfold.export.recipe import (
    PUBLISHED,
    Amount,
    AnyMethod,
    Recipe,
    RecipeError,
    Shares,
    remarks,
)
from tokenfold.export.verify import VerificationError
from tokenfold.models.checkpoints.checkpoint import CheckpointError
from tokenfold.models.checkpoints.load import load
from tokenfold.runtime.machine import cores

NOTABLE = 0.01
"""By so much of the FLOPs what a level removes may differ from what was asked, without a word."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code, 2 for what the user can mend."""
    options = _parser().parse_args(arguments)
    console = Console(stderr=True)
    try:
        name = options.name or options.out.resolve().name.lower()
        check_replaceable(options.out)
        recipe = Recipe(
            name=name,
            method=options.method,
            precision=options.precision,
            levels=options.levels,
            default_level=options.default_level,
            shape=options.shape,
            proportional=not options.no_proportional,
            weighted=options.weighted,
            layers=options.layers,
            rates=options.rates,
            tower=options.tower,
            images=options.images,
            threads=cores(),
        )
        with _progress(console) as progress:
            task = progress.add_task(f"load {options.source}", total=1)
            checkpoint = load(options.source)
            progress.advance(task)

            def stage(title: str, steps: int) -> Callable[[], None]:
                started = progress.add_task(title, total=steps)
                return lambda: progress.advance(started)

            bundle = export_bundle(checkpoint, options.source, options.out, recipe, stage)
    except (
        BundleError,
        CheckpointError,
        DataError,
        PlanError,
        RecipeError,
        VerificationError,
    ) as error:
        print(f"tokenfold export: {error}", file=sys.stderr)
        return 2
    except ValidationError as error:
        print(f"tokenfold export: {_first(error)}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("tokenfold export: interrupted; nothing was written", file=sys.stderr)
        return 130
    except OSError as error:
        print(f"tokenfold export: {error}", file=sys.stderr)
        return 2
    _report(bundle, recipe)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="tokenfold export",
        description="Turn a checkpoint into a bundle that `tokenfold serve` can serve.",
    )
    parser.add_argument(
        "source",
        metavar="SOURCE",
        help="a folder in Hugging Face, timm or Tokenfold format, a state-dict file, a hub id, "
        "or random:vit-s16 and its like: an architecture with seeded random weights",
    )
    parser.add_argument("--out", type=_path, required=True, help="the bundle's folder")
    parser.add_argument(
        "--name", help="what the service calls the model (default: the folder's name)"
    )
    parser.add_argument(
        "--method",
        choices=get_args(AnyMethod),
        help="how tokens are reduced (default: tome, and pumer for networks that see images with "
        "texts)",
    )
    parser.add_argument("--precision", choices=get_args(Precision), default="fp32")
    parser.add_argument(
        "--levels",
        type=_levels,
        metavar="NAME=AMOUNT,...",
        help="levels, and the fraction of FLOPs each removes (default: "
        + ",".join(f"{name}={value:g}" for name, value in DEFAULT_LEVELS.items())
        + ", or less where a network cannot remove as much; for PuMer also "
        + f"{PUBLISHED}, the checkpoint's own shares). An amount is also ToMe's r "
        "for each layer, r8, or r and inflection, r16/-1, or PuMer's shares of a layer's tokens to "
        "prune, merge and merge of the text, 0.1/0.3/0.2, or the plan's counts, 8+8+4+0",
    )
    parser.add_argument("--default-level", help="for requests that choose none (default: balanced)")
    parser.add_argument(
        "--shape",
        choices=get_args(Shape),
        default="constant",
        help="how the removed tokens spread over the layers",
    )
    parser.add_argument(
        "--no-proportional",
        action="store_true",
        help="attention ignores token sizes (MAE that was trained without ToMe)",
    )
    merging = parser.add_mutually_exclusive_group()
    merging.add_argument(
        "--weighted",
        action="store_true",
        default=None,
        help="of networks that see texts: merged tokens weigh what they stand for, and attention "
        "counts it (default: as the checkpoint was trained)",
    )
    merging.add_argument(
        "--plain",
        action="store_false",
        dest="weighted",
        default=None,
        help="likewise: merge by plain mean, and count every token as one, as PuMer was published",
    )
    parser.add_argument(
        "--layers",
        type=_whole_numbers,
        metavar="LAYER,...",
        help="where PuMer reduces, counted from 0 (default: the checkpoint's)",
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
        help="of METER: ToMe removes R tokens in each layer of the image tower, at every level "
        "(default: 0, as PuMer; levels count from there)",
    )
    parser.add_argument(
        "--images",
        type=_path,
        help="a folder or zip of images, to verify on and to measure each level's accuracy; "
        "folders named as the labels make it accuracy, for networks that see texts a file "
        "items.jsonl with questions and answers, and for dual encoders one with descriptions of "
        "the images makes it recall; else it is agreement with unreduced",
    )
    return parser


def _path(text: str) -> Path:
    return Path(text).expanduser()


def _whole_numbers(text: str) -> tuple[int, ...]:
    if not re.fullmatch(r"\d+(,\d+)*", text):
        raise argparse.ArgumentTypeError(f"{text!r} is not whole numbers with commas between")
    return tuple(int(part) for part in text.split(","))


def _rates(text: str) -> Shares:
    found = _shares(text)
    if found is None:
        raise argparse.ArgumentTypeError(f"{text!r} is not three shares (0 to 1) as 0.1/0.3/0.2")
    return found


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
                f"{part!r} is not NAME=AMOUNT, with an amount such as 0.55 (0 to 1), r8, r16/-1, "
                "0.1/0.3/0.2 or 8+8+4+0"
            )
        if name in levels:
            raise argparse.ArgumentTypeError(f"the level {name!r} stands twice")
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


def _progress(console: Console) -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        console=console,
    )


def _first(error: ValidationError) -> str:
    problem = error.errors()[0]
    where = ".".join(str(part) for part in problem["loc"])
    return f"{where}: {problem['msg']}" if where else problem["msg"]


def _report(bundle: Bundle, recipe: Recipe) -> None:
    manifest = bundle.manifest
    print(f"{bundle.folder}: {manifest.name}, {manifest.workload.method}, {manifest.precision}")
    for remark in remarks(manifest.workload, recipe):
        print(f"  {remark}")
    for name, level in manifest.levels.items():
        removed = 1 - level.flops_ratio
        missed = abs(level.reduction - removed) > NOTABLE
        asked = f" ({100 * level.reduction:.1f} % asked)" if missed else ""
        print(
            f"  {name:10} {100 * removed:5.1f} % fewer FLOPs{asked}, "
            f"{level.tokens_out} of {manifest.workload.tokens} tokens left, "
            f"deviation {manifest.deviation[name]:.1e}"
        )
        if bundle.profile is None:
            continue
        measured = bundle.profile.levels[name]
        for task, found in measured.quality.items():
            share = f"{100 * found.value:.2f} %"
            print(f"  {'':10} {task}: {found.metric} {share} of {found.samples}")
        for gallery, same in measured.neighbours.items():
            if gallery != name:
                print(f"  {'':10} neighbours in a gallery at {gallery}: {100 * same:.2f} %")


if __name__ == "__main__":
    sys.exit(main())
