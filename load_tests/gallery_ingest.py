"""Images that a service takes into a gallery per second, beside what its encoder could do alone.

The two take turns, so that whatever else the machine does touches both. Only one runs at a time.
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
from load_tests.client import Client, Target, post
from load_tests.load import Report, closed_loop
from load_tests.served_vs_bare import prepared_jpeg
from load_tests.server import Service, serving
from tokenfold.bundle.bundle import Bundle

GALLERY = "load-test"
# After the end of each JPEG, where no decoder looks: it makes every image another one.
_MARK = b"<number-of-image>"


@dataclass(frozen=True)
class Comparison:
    """One level, over all rounds.

    Attributes:
        bare, ingested: images per second; medians of the rounds.
        ratio: median of the rounds' ingested / bare. Each is of two neighbours in time.
        service_cpu_ms: processor time per image, of all cores; median.
        p50_ms, p99_ms: of the requests; medians.
        errors: of all rounds, by name.
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
        """The attributes, for json.dumps."""
        return asdict(self)


class Sender(Client):
    """A caller whose images are all new."""

    def __init__(self, target: Target, request: bytes, numbers: itertools.count[int]) -> None:
        """Args:
        target: where to.
        request: holds the mark once for each image.
        numbers: shared by all callers.
        """
        super().__init__(target, [request])
        self._pieces = request.split(_MARK)
        self._numbers = numbers

    def _exchange(self, request: bytes) -> int:
        del request
        fresh = [b"%0*d" % (len(_MARK), next(self._numbers)) for _ in self._pieces[1:]]
        return super()._exchange(
            b"".join(itertools.chain(*zip(self._pieces, [*fresh, b""], strict=True)))
        )


def create(target: Target, model: str, level: str) -> None:
    """Create the gallery.

    Raises:
        RuntimeError: the service did not.
    """
    connection = http.client.HTTPConnection(target.host, target.port, timeout=60.0)
    with contextlib.closing(connection):
        body = json.dumps({"name": GALLERY, "model": model, "level": level})
        connection.request("POST", "/v1/galleries", body, {"content-type": "application/json"})
        answer = connection.getresponse()
        said = answer.read().decode(errors="replace")
        if answer.status != 201:
            raise RuntimeError(f"the gallery was not created: {answer.status} {said}")


def compare(
    bundle: Bundle,
    level: str,
    *,
    rounds: int,
    batch: int,
    seconds: float,
    warm_up: float,
    concurrency: int,
    photo: bytes | None,
    callers: int,
) -> Comparison:
    """Measure both sides in each of some rounds; they swap their order each time.

    Args:
        bundle: of a dual encoder.
        level: of the manifest.
        rounds: of two measurements each.
        batch: images of a request.
        seconds: of a measurement, after `warm_up` seconds.
        concurrency: callers of the service.
        photo: a file to send; by default a JPEG of the network's size.
        callers: threads of the bare session.

    Raises:
        ValueError: a round in which nothing was answered.
    """
    image = (photo or prepared_jpeg(bundle)) + _MARK
    console = Console(stderr=True)
    quiet = not console.is_terminal
    found: list[tuple[Report, Report]] = []
    with (
        tempfile.TemporaryDirectory() as data,
        bare_session(bundle.folder, callers) as bare,
        serving(["--bundles", str(bundle.folder.resolve()), "--data-dir", data]) as service,
    ):
        create(service.target, bundle.manifest.name, level)
        request = post(service.target, f"/v1/galleries/{GALLERY}/images", [image] * batch, {})
        numbers = itertools.count()
        for number in track(range(rounds), "rounds", console=console, disable=quiet):

            def served() -> Report:
                return ingest(service, request, numbers, concurrency, seconds, warm_up)

            if number % 2:
                after = served()
                found.append((bare.load(level, seconds, warm_up), after))
            else:
                found.append((bare.load(level, seconds, warm_up), served()))
    return summary(level, found, batch)


def ingest(
    service: Service,
    request: bytes,
    numbers: itertools.count[int],
    concurrency: int,
    seconds: float,
    warm_up: float,
) -> Report:
    """Requests with new images, from a number of callers at once."""
    with contextlib.ExitStack() as stack:
        senders = [
            stack.enter_context(contextlib.closing(Sender(service.target, request, numbers)))
            for _ in range(concurrency)
        ]
        return closed_loop(
            senders, seconds=seconds, warm_up=warm_up, service_cpu=service.cpu_seconds
        )


def summary(level: str, rounds: Sequence[tuple[Report, Report]], batch: int) -> Comparison:
    """Sum up the rounds.

    Args:
        level: of the gallery.
        rounds: bare and ingested; the latter counts requests.
        batch: images of a request.

    Raises:
        ValueError: a round in which nothing was answered.
    """
    errors: dict[str, int] = {}
    for bare, served in rounds:
        for error, count in served.errors.items():
            errors[error] = errors.get(error, 0) + count
        if not bare.images_per_second or not served.images_per_second:
            raise ValueError(f"fewer than two answers in a round; errors: {errors}")
    rates = [served.images_per_second * batch for _, served in rounds]
    return Comparison(
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


def table(row: Comparison) -> Table:
    """The comparison, for people."""
    shown = Table(box=SIMPLE, pad_edge=False)
    for title in (
        *("level", "bare\nimg/s", "ingested\nimg/s", "ingested\n/ bare"),
        *("service\nCPU ms", "p50\nms", "p99\nms", "errors"),
    ):
        shown.add_column(title, justify="left" if title == "level" else "right", no_wrap=True)
    shown.add_row(
        row.level,
        f"{row.bare:.1f}",
        f"{row.ingested:.1f}",
        f"{row.ratio:.3f}",
        f"{row.service_cpu_ms:.2f}",
        f"{row.p50_ms:.1f}",
        f"{row.p99_ms:.1f}",
        str(sum(row.errors.values())),
    )
    return shown
