"""Load on a running service's routes that look at images with texts.

python -m load_tests.pairs vqa --url http://localhost:8000 --concurrency 8 --reduction 0.4
python -m load_tests.pairs match --images 4 --texts 16
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
from collections.abc import Sequence
from typing import get_args

from load_tests.arguments import add_bounds, between
from load_tests.classify import describe, load_requests
from load_tests.client import Target, TargetError, post
from load_tests.images import jpeg, synthetic
from load_tests.load import MOST_CALLS
from tokenfold.bundle.tasks import PairTask

FIELDS: dict[PairTask, str] = {
    "vqa": "question",
    "entail": "hypothesis",
    "reason": "statement",
    "match": "text",
}
# Short and long ones: they have plans of their own.
TEXTS = (
    "What colour is the circle?",
    "How many red squares are there?",
    "Is the large blue triangle to the left of the small green circle that is near the edge?",
    "There are more circles than squares.",
)
# Requests that are prepared, each with other images.
_PREPARED = 8


def prepare(
    target: Target,
    task: PairTask,
    fields: dict[str, str],
    *,
    images: int,
    texts: Sequence[str],
    count: int,
    side: int,
) -> list[bytes]:
    """Requests of one task, each with other images.

    Args:
        fields: of the form, such as `reduction`.
        images: of each request.
        texts: taken in turn, `count` for each request.
        side: of the square images, pixels.
    """
    turns = itertools.cycle(texts)
    return [
        post(
            target,
            f"/v1/{task}",
            [jpeg(synthetic(side, side, seed=number * images + at)) for at in range(images)],
            {**fields, FIELDS[task]: [next(turns) for _ in range(count)]},
        )
        for number in range(_PREPARED)
    ]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run from the command line. Returns 0 when every answer was good, otherwise 1."""
    parser = argparse.ArgumentParser(
        prog="python -m load_tests.pairs",
        description='Load on a service\'s routes that look at images with texts. An "image" of '
        "the report is a request.",
    )
    parser.add_argument("task", choices=get_args(PairTask))
    parser.add_argument("--url", default="http://127.0.0.1:8000", help="default: %(default)s")
    parser.add_argument("--allow-remote", action="store_true", help="load another machine")
    parser.add_argument(
        "--images", type=between(int, 1, 64), help="of a request; default: what the task looks at"
    )
    parser.add_argument(
        "--texts", type=between(int, 1, 64), default=1, help="of a request; default: %(default)s"
    )
    parser.add_argument("--text", action="append", help="to send; repeat for several, in turn")
    parser.add_argument(
        "--side", type=between(int, 1, 4096), default=224, help="of the images, pixels"
    )
    add_bounds(parser, concurrency=8, seconds=10.0)
    parser.add_argument("--model")
    selector = parser.add_mutually_exclusive_group()
    selector.add_argument("--level", help="name of a level")
    selector.add_argument("--reduction", help="share of the FLOPs to remove, 0 to 1")
    parser.add_argument("--json", action="store_true", help="print the report as JSON")
    options = parser.parse_args(arguments)
    try:
        target = Target.of(options.url, allow_remote=options.allow_remote)
    except TargetError as error:
        parser.error(str(error))
    asked = {"model": options.model, "level": options.level, "reduction": options.reduction}
    report = load_requests(
        target,
        prepare(
            target,
            options.task,
            {name: value for name, value in asked.items() if value is not None},
            images=options.images or (2 if options.task == "reason" else 1),
            texts=options.text or TEXTS,
            count=options.texts,
            side=options.side,
        ),
        concurrency=options.concurrency,
        seconds=options.seconds,
        warm_up=options.warm_up,
        most=MOST_CALLS,
    )
    print(json.dumps(report.as_json()) if options.json else describe(report))
    return 0 if report.images and not report.errors else 1


if __name__ == "__main__":
    sys.exit(main())
