"""`tokenfold ingest`: add a folder to a gallery of a real server."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.service.galleries.served import create
from tests.service.standin import Remote, encoded, picture, process, until
from tests.service.standin_dual import dual_bundle
from tokenfold.client.folder import Picture, batches, walk
from tokenfold.client.gallery import Client, Stop
from tokenfold.client.ingest import main


@pytest.fixture(scope="module")
def remote(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Remote]:
    root = tmp_path_factory.mktemp("bundles")
    dual_bundle(root / "a")
    # A limit of 100 kB, which some batches exceed.
    with process(root, max_body_bytes=100_000) as (_, client):
        yield client


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return a folder of four images, two of them identical, and other files."""
    root = tmp_path / "photos"
    (root / "2024" / "may").mkdir(parents=True)
    (root / ".cache").mkdir()
    (root / "a.png").write_bytes(picture("red"))
    (root / "2024" / "b.JPG").write_bytes(picture("blue", style="JPEG"))
    (root / "2024" / "may" / "it's [bold] c.webp").write_bytes(picture("lime", style="WEBP"))
    (root / "2024" / "copy.png").write_bytes(picture("red"))
    (root / "notes.txt").write_text("no image")
    (root / ".hidden.png").write_bytes(picture("white"))
    (root / ".cache" / "d.png").write_bytes(picture("black"))
    return root


def noise(seed: int, side: int = 16) -> bytes:
    values = np.random.default_rng(seed).integers(0, 256, (side, side, 3), dtype=np.uint8)
    return encoded(Image.fromarray(values))


def run(folder: Path, remote: Remote, gallery: str, *options: str) -> int:
    return main([str(folder), "--gallery", gallery, "--server", remote.url, *options])


def images(remote: Remote, gallery: str) -> dict[str, Any]:
    """Return the metadata of a gallery's images by id."""
    page = remote.get(f"/v1/galleries/{gallery}/images", params={"limit": 1000}).json()
    return {image["id"]: image["metadata"] for image in page["images"]}


class TestFolder:
    def test_each_image_is_sent_once(
        self, remote: Remote, folder: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert run(folder, remote, "once", "--create", "--level", "fast") == 0
        stderr = capsys.readouterr().err
        assert "3 images sent" in stderr
        assert "1 already present, 0 failed" in stderr
        assert remote.get("/v1/galleries/once").json()["level"] == "fast"
        metadata_by_id = images(remote, "once")
        assert sorted(metadata["path"] for metadata in metadata_by_id.values()) == [
            *("2024/b.JPG", "2024/copy.png", "2024/may/it's [bold] c.webp"),
        ]
        assert hashlib.sha256(picture("red")).hexdigest() in metadata_by_id
        (folder / "new.png").write_bytes(picture("yellow"))
        assert run(folder, remote, "once") == 0
        stderr = capsys.readouterr().err
        assert "1 images sent" in stderr
        assert "4 already present" in stderr
        assert len(images(remote, "once")) == 4

    def test_failures_are_listed(
        self, remote: Remote, folder: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        (folder / "bad [red].png").write_text("no image")
        (folder / "cut.jpg").write_bytes(picture("blue", (64, 64), "JPEG")[:500])
        assert run(folder, remote, "failures", "--create", "--batch", "2") == 1
        stderr = capsys.readouterr().err
        assert "2 failed" in stderr
        assert "bad [red].png: The file is no image" in stderr
        assert "cut.jpg: The image" in stderr
        assert len(images(remote, "failures")) == 3

    def test_a_batch_that_is_too_large_is_split(
        self, remote: Remote, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        for index in range(6):
            (tmp_path / f"{index}.png").write_bytes(noise(index, 100))  # 30 kB
        (tmp_path / "large.png").write_bytes(noise(9, 200))  # 120 kB
        assert run(tmp_path, remote, "large", "--create") == 1
        stderr = capsys.readouterr().err
        assert "6 images sent" in stderr
        assert "large.png: The body may have at most" in stderr
        assert len(images(remote, "large")) == 6

    def test_galleries_of_several_pages(self, remote: Remote, tmp_path: Path) -> None:
        for index in range(30):
            (tmp_path / f"{index}.png").write_bytes(noise(index))
        assert run(tmp_path, remote, "pages", "--create", "--batch=5", "--parallel=3") == 0
        client = Client(remote.url, "pages")
        assert client.known() == set(images(remote, "pages"))
        client.close()

    def test_undecodable_file_names(
        self, remote: Remote, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        for name, content in ((b"caf\xe9.png", noise(1)), (b"bad\xff.png", b"no image")):
            Path(os.fsdecode(os.fsencode(tmp_path) + b"/" + name)).write_bytes(content)
        (tmp_path / "fine.png").write_bytes(noise(2))
        assert run(tmp_path, remote, "names", "--create") == 1
        assert "bad\ufffd.png: The file is no image" in capsys.readouterr().err
        paths = sorted(metadata["path"] for metadata in images(remote, "names").values())
        assert paths == ["caf\ufffd.png", "fine.png"]

    def test_a_server_url_without_a_scheme(self, remote: Remote, folder: Path) -> None:
        server = remote.url.removeprefix("http://")
        assert main([str(folder), "--gallery=bare", f"--server={server}", "--create"]) == 0
        assert len(images(remote, "bare")) == 3


class TestRefused:
    def test_a_missing_gallery(
        self, remote: Remote, folder: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert run(folder, remote, "none") == 1
        assert "--create" in capsys.readouterr().err
        assert run(folder, remote, "Not A Name", "--create") == 1
        assert "name" in capsys.readouterr().err
        create(remote, "part")
        for name in ("part?x", "part/images", "part#x", "part%"):
            assert run(folder, remote, name) == 1
            assert images(remote, "part") == {}

    def test_a_gallery_of_another_model_or_level(
        self, remote: Remote, folder: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        create(remote, "exact")
        assert run(folder, remote, "exact", "--model", "clip") == 1
        assert "is dual, not clip" in capsys.readouterr().err
        assert run(folder, remote, "exact", "--level", "fast") == 1
        assert "is exact, not fast" in capsys.readouterr().err
        assert run(folder, remote, "unmade", "--create", "--model", "clip") == 1
        assert "'clip'" in capsys.readouterr().err

    def test_a_missing_folder(self, remote: Remote, tmp_path: Path) -> None:
        with pytest.raises(SystemExit):
            run(tmp_path / "none", remote, "x")

    @pytest.mark.parametrize("option", ["--batch=0", "--parallel=x"])
    def test_invalid_options(self, remote: Remote, tmp_path: Path, option: str) -> None:
        with pytest.raises(SystemExit):
            run(tmp_path, remote, "x", option)


def test_a_killed_command_can_be_repeated(remote: Remote, tmp_path: Path) -> None:
    for index in range(120):
        (tmp_path / f"{index:03}.png").write_bytes(noise(1000 + index))
    create(remote, "killed")
    command = [sys.executable, "-m", "tokenfold", "ingest", str(tmp_path), "--gallery", "killed"]
    command += ["--server", remote.url, "--batch", "2", "--parallel", "2"]
    for signal_number in (signal.SIGKILL, signal.SIGINT):
        before = len(images(remote, "killed"))
        with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as running:
            until(lambda: len(images(remote, "killed")) > before + 4, 30)  # noqa: B023
            running.send_signal(signal_number)
            _, stderr = running.communicate(timeout=20)
        if running.returncode != 0:  # otherwise it finished before the signal
            assert running.returncode in (-signal.SIGKILL, 130), stderr
        assert "Traceback" not in stderr
    completed = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert completed.returncode == 0, completed.stderr
    metadata_by_id = images(remote, "killed")
    assert len(metadata_by_id) == 120
    assert {metadata["path"] for metadata in metadata_by_id.values()} == {
        f"{index:03}.png" for index in range(120)
    }


class _BusyHandler(BaseHTTPRequestHandler):
    """Handler that refuses the first requests and then gives a fixed answer."""

    busy = 2
    answer: tuple[int, dict[str, Any]] = (200, {})
    paths: list[str] = []  # noqa: RUF012 - a fixture makes a subclass for each server

    def do_GET(self) -> None:
        type(self).paths.append(self.path)
        if type(self).busy:
            type(self).busy -= 1
            self.send_response(503)
            self.send_header("retry-after", "0")
            self.send_header("content-length", "0")
            self.end_headers()
            return
        status, body = self.answer
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["content-length"]))
        self.do_GET()

    def log_message(self, format: str, *args: Any) -> None:
        """Suppress the log."""


@pytest.fixture
def busy_server() -> Iterator[tuple[type[_BusyHandler], Client]]:
    handler = type("Handler", (_BusyHandler,), {"paths": []})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    client = Client(f"http://127.0.0.1:{server.server_port}", "x")
    try:
        yield handler, client
    finally:
        client.close()
        server.shutdown()
        thread.join()
        server.server_close()


PICTURES = [Picture(f"id{index}", Path(f"{index}.png"), b"x") for index in range(3)]


class TestBusy:
    def test_a_busy_server_is_retried(self, busy_server: tuple[type[_BusyHandler], Client]) -> None:
        handler, client = busy_server
        handler.answer = (200, {"results": [{"id": "a", "status": "added"}] * 3})
        begin = time.monotonic()
        assert client.add(PICTURES).kept == 3
        assert len(handler.paths) == 3
        assert time.monotonic() - begin < 1  # the pause of Retry-After, not the client's default

    def test_images_whose_time_ran_out_are_sent_again(
        self, busy_server: tuple[type[_BusyHandler], Client]
    ) -> None:
        handler, client = busy_server
        handler.busy = 0
        late = {"problem": {"status": 503, "detail": "late"}}
        bad = {"problem": {"status": 415, "detail": "bad"}}
        answers = iter(
            [
                (200, {"results": [{"status": "added"}, late, late]}),
                (200, {"results": [late, {"status": "added"}]}),
                (
                    415,
                    {"type": "urn:tokenfold:problem:image-format", "status": 415, **bad["problem"]},
                ),
            ]
        )
        handler.answer = property(lambda _: next(answers))  # type: ignore[assignment]
        outcome = client.add(PICTURES)
        assert outcome.kept == 2
        assert outcome.failed == [(Path("1.png"), "bad")]

    @pytest.mark.parametrize(
        ("status", "slug"),
        [(507, "storage-full"), (404, "unknown-gallery"), (409, "other-model")],
    )
    def test_fatal_problems_stop_the_client(
        self, busy_server: tuple[type[_BusyHandler], Client], status: int, slug: str
    ) -> None:
        handler, client = busy_server
        handler.busy = 0
        answer = {"type": f"urn:tokenfold:problem:{slug}", "status": status, "detail": "No way."}
        handler.answer = (status, answer)
        with pytest.raises(Stop, match="No way"):
            client.add(PICTURES)

    def test_an_unreachable_server(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("tokenfold.client.gallery._MAX_ATTEMPTS", 2)
        client = Client("http://127.0.0.1:9", "x")
        with pytest.raises(Stop, match="does not answer"):
            client.known()
        client.close()


def test_walk_finds_images(folder: Path) -> None:
    paths = [path.relative_to(folder).as_posix() for path in walk(folder, [])]
    assert paths == ["2024/b.JPG", "2024/copy.png", "2024/may/it's [bold] c.webp", "a.png"]
    (folder / "loop").symlink_to(folder)
    assert len(list(walk(folder, []))) == 4


@pytest.mark.skipif(os.geteuid() == 0, reason="root can read every file")
def test_unreadable_files_are_listed(folder: Path) -> None:
    (folder / "a.png").chmod(0)
    (folder / "2024").chmod(0)
    failed: list[tuple[Path, str]] = []
    try:
        assert list(batches(folder, set(), 16, skipped=[], failed=failed)) == []
    finally:
        (folder / "2024").chmod(0o700)
    assert len(failed) == 2


def test_batches_skip_known_images(folder: Path) -> None:
    skipped: list[Path] = []
    known = {hashlib.sha256((folder / "2024" / "b.JPG").read_bytes()).hexdigest()}
    yielded = list(batches(folder, known, 1, skipped=skipped, failed=[]))
    assert [[image.path.name for image in batch] for batch in yielded] == [
        ["copy.png"],
        ["it's [bold] c.webp"],
    ]
    assert [path.name for path in skipped] == ["b.JPG", "a.png"]
