"""Load on the /v1/classify route of a running service.

python -m load_tests.classify --url http://localhost:8000 --concurrency 8 --reduction 0.5
"""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from load_tests.arguments import add_bounds, between
from load_tests.client import AddressError, Client, ServiceAddress, post
from load_tests.images import jpeg, synthetic
from load_tests.load import MAX_CALLS, Report, closed_loop


def load_classify(
    address: ServiceAddress,
    images: Sequence[bytes],
    fields: dict[str, str],
    *,
    concurrency: int,
    seconds: float,
    warm_up: float = 1.0,
    max_requests: int = MAX_CALLS,
    service_cpu: Callable[[], float] | None = None,
) -> Report:
    """Classify images, one per request, from several concurrent callers.

    Args:
        images: encoded images, sent in turn.
        fields: form fields, such as `reduction`.
        concurrency: number of callers, each with its own connection.
        seconds: duration of the measurement, after `warm_up` seconds.
        max_requests: maximum number of requests after the warm-up.
        service_cpu: returns the processor seconds that the service has used so far.
    """
    return load_requests(
        address,
        [post(address, "/v1/classify", image, fields) for image in images],
        concurrency=concurrency,
        seconds=seconds,
        warm_up=warm_up,
        max_requests=max_requests,
        service_cpu=service_cpu,
    )


def load_requests(
    address: ServiceAddress,
    requests: Sequence[bytes],
    *,
    concurrency: int,
    seconds: float,
    warm_up: float = 1.0,
    max_requests: int = MAX_CALLS,
    service_cpu: Callable[[], float] | None = None,
) -> Report:
    """Send prepared requests in turn from several concurrent callers; see `load_classify`."""
    with contextlib.ExitStack() as stack:
        clients = [
            stack.enter_context(contextlib.closing(Client(address, requests)))
            for _ in range(concurrency)
        ]
        return closed_loop(
            clients,
            seconds=seconds,
            warm_up=warm_up,
            max_calls=max_requests,
            service_cpu=service_cpu,
        )


def describe(report: Report) -> str:
    """Summarise a report in one or two lines."""
    lines = [f"{report.images_per_second:.1f} images/s ({report.images} in {report.seconds:.1f} s)"]
    if report.p50_ms is not None:
        lines[0] += (
            f"  p50 {report.p50_ms:.1f} ms  p90 {report.p90_ms:.1f} ms  p99 {report.p99_ms:.1f} ms"
        )
    lines[0] += f"  generator {report.generator_cpu:.0%} of a core"
    if report.errors:
        lines.append("errors: " + ", ".join(f"{n} x {e}" for e, n in sorted(report.errors.items())))
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return 0 if every response was successful, otherwise 1."""
    parser = argparse.ArgumentParser(
        prog="python -m load_tests.classify", description="Load on a service's /v1/classify."
    )
    parser.add_argument("--url", default="http://127.0.0.1:8000", help="default: %(default)s")
    parser.add_argument(
        "--allow-remote", action="store_true", help="allow a service on another machine"
    )
    parser.add_argument(
        "--image", type=Path, action="append", help="image file to send; repeat for several"
    )
    add_bounds(parser, concurrency=8, seconds=10.0)
    parser.add_argument(
        "--requests",
        type=between(int, 1, MAX_CALLS),
        default=MAX_CALLS,
        help="maximum number of requests after the warm-up",
    )
    parser.add_argument("--model")
    selector = parser.add_mutually_exclusive_group()
    selector.add_argument("--level", help="name of a level")
    selector.add_argument("--reduction", help="fraction of the FLOPs to remove, 0 to 1")
    parser.add_argument("--json", action="store_true", help="print the report as JSON")
    options = parser.parse_args(arguments)
    try:
        address = ServiceAddress.of(options.url, allow_remote=options.allow_remote)
        images = [path.read_bytes() for path in options.image or ()]
    except (AddressError, OSError) as error:
        parser.error(str(error))
    selected = {"model": options.model, "level": options.level, "reduction": options.reduction}
    report = load_classify(
        address,
        images or [jpeg(synthetic(224, 224))],
        {name: value for name, value in selected.items() if value is not None},
        concurrency=options.concurrency,
        seconds=options.seconds,
        warm_up=options.warm_up,
        max_requests=options.requests,
    )
    print(json.dumps(report.as_json()) if options.json else describe(report))
    return 0 if report.images and not report.errors else 1


if __name__ == "__main__":
    sys.exit(main())
