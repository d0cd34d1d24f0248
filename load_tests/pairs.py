"""Load on the routes of a running service that take images with texts.

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
from load_tests.client import AddressError, ServiceAddress, post
from load_tests.images import jpeg, synthetic
from load_tests.load import MAX_CALLS
from tokenfold.bundle.tasks import PairTask

FIELDS: dict[PairTask, str] = {
    "vqa": "question",
    "entail": "hypothesis",
    "reason": "statement",
    "match": "text",
}
# Short and long texts, which use different plans.
TEXTS = (
    "What colour is the circle?",
    "How many red squares are there?",
    "Is the large blue triangle to the left of the small green circle that is near the edge?",
    "There are more circles than squares.",
)
# Number of prepared requests, each with different images.
_PREPARED = 8


def prepare(
    address: ServiceAddress,
    task: PairTask,
    fields: dict[str, str],
    *,
    images: int,
    texts: Sequence[str],
    texts_per_request: int,
    side: int,
) -> list[bytes]:
    """Prepare requests of one task, each with different images.

    Args:
        fields: form fields, such as `reduction`.
        images: images per request.
        texts: texts to cycle through, `texts_per_request` for each request.
        side: side of the square images, pixels.
    """
    next_texts = itertools.cycle(texts)
    return [
        post(
            address,
            f"/v1/{task}",
            [
                jpeg(synthetic(side, side, seed=number * images + image_index))
                for image_index in range(images)
            ],
            {**fields, FIELDS[task]: [next(next_texts) for _ in range(texts_per_request)]},
        )
        for number in range(_PREPARED)
    ]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return 0 if every response was successful, otherwise 1."""
    parser = argparse.ArgumentParser(
        prog="python -m load_tests.pairs",
        description="Load on a service's routes that take images with texts. The report counts "
        'each request as one "image".',
    )
    parser.add_argument("task", choices=get_args(PairTask))
    parser.add_argument("--url", default="http://127.0.0.1:8000", help="default: %(default)s")
    parser.add_argument(
        "--allow-remote", action="store_true", help="allow a service on another machine"
    )
    parser.add_argument(
        "--images", type=between(int, 1, 64), help="images per request; default: as the task needs"
    )
    parser.add_argument(
        "--texts",
        type=between(int, 1, 64),
        default=1,
        help="texts per request; default: %(default)s",
    )
    parser.add_argument(
        "--text", action="append", help="text to send; repeat to cycle through several"
    )
    parser.add_argument(
        "--side", type=between(int, 1, 4096), default=224, help="side of the images, pixels"
    )
    add_bounds(parser, concurrency=8, seconds=10.0)
    parser.add_argument("--model")
    selector = parser.add_mutually_exclusive_group()
    selector.add_argument("--level", help="name of a level")
    selector.add_argument("--reduction", help="fraction of the FLOPs to remove, 0 to 1")
    parser.add_argument("--json", action="store_true", help="print the report as JSON")
    options = parser.parse_args(arguments)
    try:
        address = ServiceAddress.of(options.url, allow_remote=options.allow_remote)
    except AddressError as error:
        parser.error(str(error))
    selected = {"model": options.model, "level": options.level, "reduction": options.reduction}
    report = load_requests(
        address,
        prepare(
            address,
            options.task,
            {name: value for name, value in selected.items() if value is not None},
            images=options.images or (2 if options.task == "reason" else 1),
            texts=options.text or TEXTS,
            texts_per_request=options.texts,
            side=options.side,
        ),
        concurrency=options.concurrency,
        seconds=options.seconds,
        warm_up=options.warm_up,
        max_requests=MAX_CALLS,
    )
    print(json.dumps(report.as_json()) if options.json else describe(report))
    return 0 if report.images and not report.errors else 1


if __name__ == "__main__":
    sys.exit(main())
