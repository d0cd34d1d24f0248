"""The command `tokenfold export`: turn a checkpoint into a bundle."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from pydantic import ValidationError
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from tokenfold.bundle.bundle import Bundle, BundleError
from tokenfold.bundle.workload import PlanError
from tokenfold.bundle.writing import check_replaceable
from tokenfold.export.arguments import parser
from tokenfold.export.levels import remarks
from tokenfold.export.pipeline import export_source
from tokenfold.export.quality.photos import DataError
from tokenfold.export.recipe import Recipe, RecipeError
from tokenfold.export.stages import Step
from tokenfold.export.verification.comparison import VerificationError
from tokenfold.models.checkpoints.checkpoint import CheckpointError
from tokenfold.runtime.machine import cores

TOLERATED_DIFFERENCE = 0.01
"""Largest difference between requested and removed FLOPs that the report does not mention."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command.

    Returns:
        The exit code: 2 for errors that the user can correct, 130 after an interrupt.
    """
    options = parser().parse_args(arguments)
    console = Console(stderr=True)
    try:
        check_replaceable(options.out)
        recipe = Recipe(
            name=options.name or options.out.resolve().name.lower(),
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

            def stage(title: str, steps: int) -> Step:
                task = progress.add_task(title, total=steps)
                return lambda: progress.advance(task)

            bundle = export_source(options.source, options.out, recipe, stage)
    except ValidationError as error:
        print(f"tokenfold export: {_first(error)}", file=sys.stderr)
        return 2
    except (
        BundleError,
        CheckpointError,
        DataError,
        OSError,
        PlanError,
        RecipeError,
        VerificationError,
    ) as error:
        print(f"tokenfold export: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("tokenfold export: interrupted; nothing was written", file=sys.stderr)
        return 130
    _report(bundle, recipe)
    return 0


def _progress(console: Console) -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        console=console,
    )


def _first(error: ValidationError) -> str:
    """Return the first problem of an invalid recipe, in one line."""
    problem = error.errors()[0]
    field = ".".join(str(part) for part in problem["loc"])
    return f"{field}: {problem['msg']}" if field else problem["msg"]


def _report(bundle: Bundle, recipe: Recipe) -> None:
    """Print each level with its reduction, deviation and quality."""
    manifest = bundle.manifest
    print(f"{bundle.folder}: {manifest.name}, {manifest.workload.method}, {manifest.precision}")
    for remark in remarks(manifest.workload, recipe):
        print(f"  {remark}")
    for name, level in manifest.levels.items():
        removed = 1 - level.flops_ratio
        differs = abs(level.reduction - removed) > TOLERATED_DIFFERENCE
        requested = f" ({100 * level.reduction:.1f} % requested)" if differs else ""
        print(
            f"  {name:10} {100 * removed:5.1f} % fewer FLOPs{requested}, "
            f"{level.tokens_out} of {manifest.workload.tokens} tokens left, "
            f"deviation {manifest.deviation[name]:.1e}"
        )
        if bundle.profile is None:
            continue
        measured = bundle.profile.levels[name]
        for task, quality in measured.quality.items():
            share = f"{100 * quality.value:.2f} %"
            print(f"  {'':10} {task}: {quality.metric} {share} of {quality.samples}")
        for gallery, share_of_neighbours in measured.neighbours.items():
            if gallery != name:
                print(
                    f"  {'':10} neighbours in a gallery at {gallery}: "
                    f"{100 * share_of_neighbours:.2f} %"
                )


if __name__ == "__main__":
    sys.exit(main())
