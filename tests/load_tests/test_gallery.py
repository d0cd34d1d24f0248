"""The load generators for galleries: requests, measurements and summaries."""

from __future__ import annotations

import itertools
import json
import re
import threading
from contextlib import closing
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest

from load_tests import gallery, gallery_ingest, gallery_search
from load_tests.client import ServiceAddress, post
from load_tests.load import Report
from tests.service.standin import bundle


def report(rate: float, errors: dict[str, int] | None = None) -> Report:
    return Report(
        images=int(rate * 4),
        seconds=4.0,
        images_per_second=rate,
        p50_ms=1.0,
        p90_ms=2.0,
        p99_ms=3.0,
        errors=errors or {},
        generator_cpu=0.1,
        service_cpu=1.5,
    )


def test_rates_count_images_not_requests() -> None:
    rounds = [(report(100.0), report(5.0)), (report(200.0), report(12.0, {"503": 2}))]
    comparison = gallery_ingest.summary("balanced", rounds, batch=16)
    assert (comparison.bare, comparison.ingested) == (150.0, 136.0)
    assert comparison.ratio == pytest.approx((0.8 + 0.96) / 2)
    assert comparison.errors == {"503": 2}
    assert comparison.service_cpu_ms == pytest.approx((1.5 / 80 + 1.5 / 192) / 2 * 1e3)
    with pytest.raises(ValueError, match="fewer than two"):
        gallery_ingest.summary("balanced", [(report(100.0), report(0.0))], batch=16)
    assert gallery_ingest.table(comparison).row_count == 1


def test_every_sent_image_is_distinct() -> None:
    bodies: list[bytes] = []

    class Answer(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            bodies.append(self.rfile.read(int(self.headers["content-length"])))
            self.send_response(200)
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, format: str, *arguments: object) -> None:
            del format, arguments

    with ThreadingHTTPServer(("127.0.0.1", 0), Answer) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = ServiceAddress("127.0.0.1", server.server_port)
        image = b"\xff\xd8image" + gallery_ingest._PLACEHOLDER
        request = post(address, "/v1/galleries/load-test/images", [image] * 3, {})
        numbers = itertools.count()
        with closing(gallery_ingest.Sender(address, request, numbers)) as sender:
            assert [sender(), sender()] == [None, None]
        server.shutdown()
    sent_numbers = [
        int(number) for body in bodies for number in re.findall(rb"image(\d+)\r\n", body)
    ]
    assert sent_numbers == list(range(6))


def test_a_small_gallery_is_measured(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--json", "search", "--sizes", "50", "--width", "16", "--queries", "6"]
    assert gallery.main([*arguments, "--folder", str(tmp_path)]) == 0
    (row,) = json.loads(capsys.readouterr().out)["sizes"]
    assert (row["size"], row["width"], row["recall"]) == (50, 16, 1.0)
    assert row["exact_p50_ms"] > 0
    assert list(tmp_path.iterdir()) == []


def test_synthetic_vectors_form_clusters() -> None:
    first, second = gallery_search.clustered(500, 32, 1), gallery_search.clustered(500, 32, 2)
    np.testing.assert_allclose(np.linalg.norm(first, axis=1), 1.0, atol=1e-5)
    assert not np.array_equal(first, second)
    cosines = first @ second.T
    assert np.median(cosines.max(axis=1)) > 0.5 > np.median(cosines)


def test_ingest_refuses_other_bundles(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for folder in (bundle(tmp_path / "colours"), tmp_path / "nothing"):
        with pytest.raises(SystemExit):
            gallery.main(["ingest", str(folder)])
    stderr = capsys.readouterr().err
    assert "is not the bundle of a dual encoder" in stderr
