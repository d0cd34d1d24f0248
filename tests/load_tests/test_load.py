"""The load generators: requests, counts and errors, against a small HTTP server."""

from __future__ import annotations

import email
import email.policy
import itertools
import json
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import BytesIO
from pathlib import Path

import pytest
from PIL import Image

from load_tests import classify, pairs, served_vs_bare
from load_tests.arguments import between
from load_tests.client import AddressError, Client, ServiceAddress, post
from load_tests.images import jpeg, synthetic
from load_tests.load import FinishedCall, Report, closed_loop, percentile_ms, summarise
from load_tests.served_vs_bare import Round, compare
from load_tests.server import ServiceError, free_port, serving
from tests.service import standin
from tests.service.standin import serving as service_serving
from tests.service.standin_dual import dual_bundle
from tests.service.standin_pairs import pair_bundle
from tokenfold.service.app import create_app


class Answers(ThreadingHTTPServer):
    """HTTP server that cycles through given statuses and records the requests."""

    daemon_threads = True

    def __init__(self, statuses: list[int], *, closes: bool = False, silent: bool = False) -> None:
        self.statuses = itertools.cycle(statuses)
        self.closes = closes
        self.silent = silent
        self.bodies: list[tuple[str, bytes]] = []
        self.connections = 0
        super().__init__(("127.0.0.1", 0), Handler)

    @property
    def address(self) -> ServiceAddress:
        return ServiceAddress("127.0.0.1", self.server_port)


class Handler(BaseHTTPRequestHandler):
    """Handler of one connection to `Answers`."""

    protocol_version = "HTTP/1.1"
    server: Answers

    def setup(self) -> None:
        super().setup()
        self.server.connections += 1

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        self.server.bodies.append((self.headers["content-type"], body))
        if self.server.silent:
            self.close_connection = True
            return
        answer = b'{"results": []}'
        self.send_response(next(self.server.statuses))
        self.send_header("Content-Length", str(len(answer)))
        if self.server.closes:
            self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, format: str, *args: object) -> None:
        """Suppress the log."""


@contextmanager
def answering(*statuses: int, closes: bool = False, silent: bool = False) -> Iterator[Answers]:
    """Run `Answers` on a loopback port."""
    with Answers(list(statuses), closes=closes, silent=silent) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


def report(rate: float, *, generator: float = 0.0, service: float | None = None) -> Report:
    return Report(
        images=100,
        seconds=1.0,
        images_per_second=rate,
        p50_ms=1.0,
        p90_ms=2.0,
        p99_ms=3.0,
        errors={},
        generator_cpu=generator,
        service_cpu=service,
    )


def test_percentiles_are_measured_values() -> None:
    durations = [n / 1e3 for n in range(1, 101)]
    assert percentile_ms(durations, 50) == pytest.approx(50.0)
    assert percentile_ms(durations, 99) == pytest.approx(99.0)
    assert percentile_ms([0.007], 99) == pytest.approx(7.0)
    assert percentile_ms([], 50) is None


def test_the_rate_counts_intervals_in_the_measured_time() -> None:
    calls = [FinishedCall(end=0.25 * n, seconds=0.5) for n in range(40)]
    summary = summarise(calls, start=2.0, stop=6.0)
    assert summary.images == 17
    assert summary.seconds == 4.0
    assert summary.images_per_second == 4.0
    assert summary.p99_ms == 500.0


def test_errors_count_by_name_and_not_as_images() -> None:
    calls = [
        FinishedCall(1.0, 0.1),
        FinishedCall(1.5, 0.1, "503"),
        FinishedCall(1.6, 0.1, "503"),
        FinishedCall(2.0, 0.1, "timeout"),
    ]
    summary = summarise(calls, start=0.0, stop=3.0)
    assert (summary.images, summary.errors) == (1, {"503": 2, "timeout": 1})
    assert summary.images_per_second == 0.0


def test_a_report_without_calls_is_zero() -> None:
    summary = summarise([], start=0.0, stop=1.0)
    assert (summary.images, summary.images_per_second, summary.p50_ms) == (0, 0.0, None)
    assert classify.describe(summary).startswith("0.0 images/s")


def test_a_closed_loop_measures_a_known_rate() -> None:
    def work() -> None:
        time.sleep(0.01)

    summary = closed_loop([work] * 3, seconds=0.5, warm_up=0.05)
    # At most 300, less the delay of each sleep on a busy machine.
    assert 100 < summary.images_per_second <= 301
    assert summary.p50_ms is not None
    assert 10.0 <= summary.p50_ms < 30.0


def test_a_closed_loop_stops_at_its_maximum_of_calls() -> None:
    calls = itertools.count()
    begin = time.monotonic()
    closed_loop([lambda: (next(calls), None)[1]] * 2, seconds=30.0, max_calls=25)
    assert next(calls) == 25
    assert time.monotonic() - begin < 10.0


def test_a_closed_loop_propagates_exceptions() -> None:
    def broken() -> None:
        raise RuntimeError("broken")

    with pytest.raises(RuntimeError, match="broken"):
        closed_loop([broken], seconds=0.05)


@pytest.mark.parametrize(
    ("seconds", "max_calls"), [(0.0, 1), (1e4, 1), (float("nan"), 1), (1.0, 0), (1.0, 10**9)]
)
def test_a_closed_loop_is_bounded(seconds: float, max_calls: int) -> None:
    with pytest.raises(ValueError, match=r"at most|between"):
        closed_loop([lambda: None], seconds=seconds, max_calls=max_calls)


def test_the_request_is_a_valid_multipart_form() -> None:
    image = jpeg(synthetic(32, 48))
    with answering(200) as server:
        request = post(server.address, "/v1/classify", image, {"reduction": "0.5"})
        with closing(Client(server.address, [request])) as client:
            assert client() is None
            assert client() is None
        assert server.connections == 1
        content_type, body = server.bodies[0]
    form = email.message_from_bytes(
        f"content-type: {content_type}\r\n\r\n".encode() + body, policy=email.policy.HTTP
    )
    parts = {
        part.get_param("name", header="content-disposition"): part.get_payload(decode=True)
        for part in form.iter_parts()
    }
    assert parts == {"reduction": b"0.5", "image": image}
    assert Image.open(BytesIO(image)).size == (48, 32)


def test_each_failure_has_a_name() -> None:
    with answering(200, 503, 422) as server:
        request = post(server.address, "/", b"", {})
        with closing(Client(server.address, [request])) as client:
            assert [client() for _ in range(4)] == [None, "503", "422", None]
    # The server is closed now.
    with closing(Client(server.address, [request])) as client:
        assert client() == "connection"


def test_a_broken_connection_is_reopened() -> None:
    with answering(200, closes=True) as server:
        request = post(server.address, "/", b"", {})
        with closing(Client(server.address, [request])) as client:
            assert [client() for _ in range(3)] == [None, None, None]
        assert server.connections == 3
    with answering(200, silent=True) as server:
        request = post(server.address, "/", b"", {})
        with closing(Client(server.address, [request])) as client:
            assert client() == "connection"
            server.silent = False
            assert client() is None


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("https://127.0.0.1:8000", "is not of the form http"),
        ("http://192.0.2.1:8000", "is not this machine"),
        ("http://127.0.0.1:eight", "Port could not"),
    ],
)
def test_other_machines_are_refused_by_default(url: str, message: str) -> None:
    with pytest.raises(AddressError, match=message):
        ServiceAddress.of(url)


def test_other_machines_are_accepted_on_request() -> None:
    address = ServiceAddress.of("http://192.0.2.1:8000", allow_remote=True)
    assert address == ServiceAddress("192.0.2.1", 8000)


def test_the_command_prints_its_report_as_json(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    photo = tmp_path / "photo.jpg"
    photo.write_bytes(jpeg(synthetic(16, 16)))
    with answering(200, 200, 200, 503) as server:
        status = classify.main(
            [
                *("--url", f"http://127.0.0.1:{server.server_port}", "--image", str(photo)),
                *("--level", "fast", "--concurrency", "2", "--seconds", "20", "--warm-up", "0"),
                *("--requests", "40", "--json"),
            ]
        )
        assert len(server.bodies) == 40
        assert b'name="level"\r\n\r\nfast\r\n' in server.bodies[0][1]
    report = json.loads(capsys.readouterr().out)
    assert (report["images"], report["errors"]) == (30, {"503": 10})
    assert report["images_per_second"] > 0
    assert report["p50_ms"] <= report["p90_ms"] <= report["p99_ms"]
    assert status == 1


@pytest.mark.parametrize(
    "arguments",
    [
        ["--concurrency", "0"],
        ["--seconds", "nan"],
        ["--seconds", "1e9"],
        ["--level", "fast", "--reduction", "0.5"],
        ["--url", "http://192.0.2.1"],
        ["--image", "/does/not/exist"],
    ],
)
def test_invalid_options_are_refused(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as exit_:
        classify.main(arguments)
    assert exit_.value.code == 2
    assert "error:" in capsys.readouterr().err


def test_numbers_have_limits() -> None:
    assert between(int, 1, 3)("3") == 3
    for text in ("4", "0", "three"):
        with pytest.raises(Exception, match=text):
            between(int, 1, 3)(text)


def test_the_ratio_compares_consecutive_measurements() -> None:
    # The machine halves its speed in the last round; the service costs a tenth in every round.
    rounds = [
        Round(report(rate, generator=2.0), report(0.9 * rate, generator=0.1, service=1.8))
        for rate in (100.0, 100.0, 50.0)
    ]
    comparison = compare("fast", rounds)
    assert comparison.ratio == pytest.approx(0.9)
    assert comparison.bare == pytest.approx(100.0)
    assert comparison.served == pytest.approx(90.0)
    assert comparison.bare_cpu_ms == pytest.approx(20.0)
    assert comparison.service_cpu_ms == pytest.approx(20.0)
    assert comparison.generator_cpu == pytest.approx(0.1)


def test_a_dual_encoder_is_compared_by_its_embeddings(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [str(dual_bundle(tmp_path / "dual")), "--levels", "fast", "--rounds=1", "--goal=0"]
    assert served_vs_bare.main([*arguments, "--seconds=0.5", "--warm-up=0.1", "--json"]) == 0
    (result,) = json.loads(capsys.readouterr().out)["levels"]
    assert result["level"] == "fast"
    assert not result["errors"]
    assert result["served"] > 0
    with pytest.raises(SystemExit):
        served_vs_bare.main([str(pair_bundle(tmp_path / "pairs"))])
    assert "takes images with texts" in capsys.readouterr().err


def test_a_round_without_answers_is_an_error() -> None:
    with pytest.raises(ValueError, match="level fast"):
        compare("fast", [Round(report(10.0), report(0.0))])


STAND_IN = """
import argparse, http.server
parser = argparse.ArgumentParser()
parser.add_argument("--host"), parser.add_argument("--port", type=int)
options = parser.parse_args()
class Ready(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200 if self.path == "/readyz" else 404)
        self.end_headers()
http.server.HTTPServer((options.host, options.port), Ready).serve_forever()
"""


def test_a_service_ends_with_its_context() -> None:
    with serving([], command=[sys.executable, "-c", STAND_IN]) as service:
        assert service.process.is_running()
        assert service.cpu_seconds() > 0
    assert not service.process.is_running()


def test_a_failed_service_reports_its_output() -> None:
    command = [sys.executable, "-c", "raise SystemExit('no such bundle')"]
    with (
        pytest.raises(ServiceError, match="ended with 1:\nno such bundle"),
        serving([], command=command),
    ):
        pass


def test_a_service_that_never_answers_times_out() -> None:
    command = [sys.executable, "-c", "import time; time.sleep(60)"]
    with (
        pytest.raises(ServiceError, match="was not ready after"),
        serving([], command=command, timeout=0.3),
    ):
        pass


def test_free_port_returns_an_unprivileged_port() -> None:
    assert 1024 <= free_port() <= 65535


class TestPairs:
    @staticmethod
    def parts(kind: str, body: bytes) -> list[tuple[str, bytes]]:
        head = f"content-type: {kind}\r\n\r\n".encode()
        message = email.message_from_bytes(head + body, policy=email.policy.HTTP)
        return [
            (str(part.get_param("name", header="content-disposition")), part.get_content())
            for part in message.iter_parts()
        ]

    def test_prepared_requests(self) -> None:
        with answering(200) as server:
            address = server.address
            requests = pairs.prepare(
                address,
                "match",
                {"level": "fast"},
                images=2,
                texts=["a", "b"],
                texts_per_request=3,
                side=32,
            )
            with closing(Client(address, requests)) as client:
                assert client() is None
                assert client() is None
        first, second = (self.parts(kind, body) for kind, body in server.bodies)
        assert [name for name, _ in first] == ["level", "text", "text", "text", "image", "image"]
        assert [str(text).strip() for _, text in first[1:4]] == ["a", "b", "a"]
        assert [str(text).strip() for _, text in second[1:4]] == ["b", "a", "b"]
        sent = {bytes(image) for name, image in first + second if name == "image"}
        assert len(sent) == 4

    def test_against_the_service(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        pair_bundle(tmp_path / "a")
        with service_serving(create_app(standin.settings(tmp_path))) as remote:
            for task, options in (
                ("vqa", ["--reduction=0.4"]),
                ("entail", ["--text=it is red"]),
                ("reason", ["--level=fast"]),
                ("match", ["--images=3", "--texts=4"]),
            ):
                arguments = [task, f"--url={remote.url}", "--seconds=0.3", "--warm-up=0", "--json"]
                assert pairs.main([*arguments, "--side=32", "--concurrency=2", *options]) == 0
                assert json.loads(capsys.readouterr().out)["images"] > 0
        assert pairs.main(["vqa", f"--url={remote.url}", "--seconds=0.1", "--warm-up=0"]) == 1
        assert "connection" in capsys.readouterr().out
