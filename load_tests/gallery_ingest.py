"""Compare images added to a gallery per second with the rate of the bare encoder.

The two sides alternate, so that other work on the machine affects both. Only one runs at a time.
"""

from __future__ import annotations

import contextlib
import http.client
import itertools
import json
import statistics
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from rich.box import SIMPLE
from rich.console import Console
from rich.progress import track
from rich.table import Table

from load_tests.bare import bare_session
from load_tests.client import Client, ServiceAddress, post
from load_tests.load import Report, Schedule, alternate, closed_loop, total_errors
from load_tests.served_vs_bare import prepared_jpeg
from load_tests.server import Service, serving
from tokenfold.bundle.bundle import Bundle

GALLERY = "load-test"
# Appended to each JPEG, where decoders ignore it: replaced by a number, it makes images distinct.
_PLACEHOLDER = b"<number-of-image>"


@dataclass(frozen=True)
class IngestComparison:
    """Results of a level over all rounds.

    Attributes:
        bare, ingested: images per second; medians of the rounds.
        ratio: median of the rounds' ingested / bare; each ratio is of consecutive measurements.
        service_cpu_ms: processor time per image, summed over all cores; median.
        p50_ms, p99_ms: duration of a request; medians.
        errors: number of errors in all rounds, by name.
    """

    level: str
    bare: float
    ingested: float
    ratio: float
    service_cpu_ms: float
    p50_ms: float
    p99_ms: float
    errors: dict[str, int]

    def as_json(self) -> dict[str, Any]:
        """Return the attributes as a dict for json.dumps."""
        return asdict(self)


class Sender(Client):
    """A caller that never sends the same image twice."""

    def __init__(
        self, address: ServiceAddress, request: bytes, numbers: itertools.count[int]
    ) -> None:
        """Prepare the sender; the first request connects.

        Args:
            address: address of the service.
            request: request that contains the placeholder once per image.
            numbers: counter shared by all callers.
        """
        super().__init__(address, [request])
        self._pieces = request.split(_PLACEHOLDER)
        self._numbers = numbers

    def _exchange(self, request: bytes) -> int:
        del request
        new_numbers = [b"%0*d" % (len(_PLACEHOLDER), next(self._numbers)) for _ in self._pieces[1:]]
        return super()._exchange(
            b"".join(itertools.chain(*zip(self._pieces, [*new_numbers, b""], strict=True)))
        )


def create(address: ServiceAddress, model: str, level: str) -> None:
    """Create the gallery.

    Raises:
        RuntimeError: the service refused.
    """
    connection = http.client.HTTPConnection(address.host, address.port, timeout=60.0)
    with contextlib.closing(connection):
        body = json.dumps({"name": GALLERY, "model": model, "level": level})
        connection.request("POST", "/v1/galleries", body, {"content-type": "application/json"})
        response = connection.getresponse()
        text = response.read().decode(errors="replace")
        if response.status != 201:
            raise RuntimeError(f"the gallery was not created: {response.status} {text}")


def compare(
    bundle: Bundle,
    level: str,
    schedule: Schedule,
    *,
    batch: int,
    photo: bytes | None,
    callers: int,
) -> IngestComparison:
    """Measure both sides in each round; their order alternates.

    Args:
        bundle: bundle of a dual encoder.
        level: level of the bundle.
        schedule: rounds, durations and concurrency of the service's callers.
        batch: images per request.
        photo: image file to send; by default a JPEG of the network's size.
        callers: threads of the bare session.

    Raises:
        ValueError: no request was answered in a round.
    """
    image = (photo or prepared_jpeg(bundle)) + _PLACEHOLDER
    console = Console(stderr=True)
    quiet = not console.is_terminal
    with (
        tempfile.TemporaryDirectory() as data,
        bare_session(bundle.folder, callers) as bare,
        serving(["--bundles", str(bundle.folder.resolve()), "--data-dir", data]) as service,
    ):
        create(service.address, bundle.manifest.name, level)
        request = post(service.address, f"/v1/galleries/{GALLERY}/images", [image] * batch, {})
        numbers = itertools.count()
        rounds = track(range(schedule.rounds), "rounds", console=console, disable=quiet)
        reports = [
            alternate(
                round_index,
                lambda: bare.load(level, schedule.seconds, schedule.warm_up),
                lambda: ingest(service, request, numbers, schedule),
            )
            for round_index in rounds
        ]
    return summary(level, reports, batch)


def ingest(
    service: Service, request: bytes, numbers: itertools.count[int], schedule: Schedule
) -> Report:
    """Add new images from several concurrent callers."""
    with contextlib.ExitStack() as stack:
        senders = [
            stack.enter_context(contextlib.closing(Sender(service.address, request, numbers)))
            for _ in range(schedule.concurrency)
        ]
        return closed_loop(
            senders,
            seconds=schedule.seconds,
            warm_up=schedule.warm_up,
            service_cpu=service.cpu_seconds,
        )


def summary(level: str, rounds: Sequence[tuple[Report, Report]], batch: int) -> IngestComparison:
    """Summarise the rounds.

    Args:
        level: level of the gallery.
        rounds: reports of the bare session and of the service, which counts requests.
        batch: images per request.

    Raises:
        ValueError: no request was answered in a round.
    """
    errors = total_errors(served for _, served in rounds)
    for bare, served in rounds:
        if not bare.images_per_second or not served.images_per_second:
            raise ValueError(f"fewer than two answers in a round; errors: {errors}")
    rates = [served.images_per_second * batch for _, served in rounds]
    return IngestComparison(
        level=level,
        bare=statistics.median(bare.images_per_second for bare, _ in rounds),
        ingested=statistics.median(rates),
        ratio=statistics.median(
            rate / bare.images_per_second for rate, (bare, _) in zip(rates, rounds, strict=True)
        ),
        service_cpu_ms=statistics.median(
            (served.service_cpu or 0.0) / rate * 1e3
            for rate, (_, served) in zip(rates, rounds, strict=True)
        ),
        p50_ms=statistics.median(served.p50_ms or 0.0 for _, served in rounds),
        p99_ms=statistics.median(served.p99_ms or 0.0 for _, served in rounds),
        errors=errors,
    )


def table(row: IngestComparison) -> Table:
    """Return the comparison as a table."""
    result = Table(box=SIMPLE, pad_edge=False)
    for title in (
        *("level", "bare\nimg/s", "ingested\nimg/s", "ingested\n/ bare"),
        *("service\nCPU ms", "p50\nms", "p99\nms", "errors"),
    ):
        result.add_column(title, justify="left" if title == "level" else "right", no_wrap=True)
    result.add_row(
        row.level,
        f"{row.bare:.1f}",
        f"{row.ingested:.1f}",
        f"{row.ratio:.3f}",
        f"{row.service_cpu_ms:.2f}",
        f"{row.p50_ms:.1f}",
        f"{row.p99_ms:.1f}",
        str(sum(row.errors.values())),
    )
    return result
