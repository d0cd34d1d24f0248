"""A server as a process: killed in the middle of an ingest, and with a full disk."""

from __future__ import annotations

import contextlib
import io
import random
import resource
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image

from tests.service.galleries.served import BLUE, GREEN, RED, add, added, create, ids, search
from tests.service.standin import Remote, bundle, encoded, problem, process, until
from tests.service.standin_dual import dual_bundle

KILLS = 3
IMAGES = 400


def noise(seed: int) -> bytes:
    """A PNG that no other seed gives."""
    values = np.random.default_rng(seed).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    return encoded(Image.fromarray(values))


def free_port() -> int:
    """A port that nobody listens on now."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        return int(listening.getsockname()[1])


def count(remote: Remote) -> int:
    return int(remote.get("/v1/galleries/killed").json()["images"])


class Adding:
    """Somebody else, who adds image after image and notes what was acknowledged."""

    def __init__(self, url: str) -> None:
        self.acknowledged: set[str] = set()
        self._url = url
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> Adding:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()

    def _run(self) -> None:
        turn = 0
        with Remote(self._url) as remote:
            while not self._done.is_set():
                turn += 1
                name = f"other-{turn:05}"
                with contextlib.suppress(httpx.TransportError):
                    if add(remote, "killed", noise(10_000 + turn), ids=[name]).status_code == 200:
                        self.acknowledged.add(name)
                        continue
                self._done.wait(0.05)


def test_killed_in_the_middle_of_an_ingest(tmp_path: Path) -> None:
    draw = random.Random(4)
    photos, root, port = tmp_path / "photos", tmp_path / "bundles", free_port()
    photos.mkdir()
    for at in range(IMAGES):
        (photos / f"{at:03}.png").write_bytes(noise(at))
    dual_bundle(root / "a")
    line = [sys.executable, "-m", "tokenfold", "ingest", str(photos), "--gallery=killed"]
    line += ["--create", f"--server=http://127.0.0.1:{port}", "--batch=2", "--parallel=3"]
    with contextlib.ExitStack() as last:
        ingest: subprocess.Popen[str] | None = None
        there: set[str] = set()
        for turn in range(KILLS + 1):
            with process(root, port=port) as (running, remote):
                if ingest is None:
                    create(remote, "killed")
                    ingest = last.enter_context(
                        subprocess.Popen(line, stderr=subprocess.PIPE, text=True)
                    )
                    last.callback(ingest.kill)
                    other = last.enter_context(Adding(remote.url))
                known = set(other.acknowledged)
                found = set(listed(remote))
                assert there <= found
                assert known <= found
                if turn < KILLS:
                    before = count(remote)
                    until(lambda: count(remote) > before + 10, 20)  # noqa: B023
                    time.sleep(draw.uniform(0.0, 0.2))
                    there = set(listed(remote))
                    assert ingest.poll() is None, "it was faster than the kills"
                    running.send_signal(signal.SIGKILL)
                    running.wait()
                    continue
                _, said = ingest.communicate(timeout=60)
                assert ingest.returncode == 0, said
                last.close()
                check(remote, other.acknowledged)
                # The same command has nothing to do any more.
                again = subprocess.run(line, capture_output=True, text=True, timeout=60)
                assert again.returncode == 0, again.stderr
                assert f"{IMAGES} already present" in again.stderr


def listed(remote: Remote) -> dict[str, Any]:
    """The metadata of all images, by id."""
    found: dict[str, Any] = {}
    query: dict[str, str] = {"limit": "1000"}
    while True:
        page = remote.get("/v1/galleries/killed/images", params=query).json()
        found |= {image["id"]: image["metadata"] for image in page["images"]}
        if "next" not in page:
            return found
        query["after"] = page["next"]


def check(remote: Remote, acknowledged: set[str]) -> None:
    """Every image is there, once and whole."""
    found = listed(remote)
    assert acknowledged <= set(found)
    own = sorted(name for name in found if not name.startswith("other-"))
    assert len(own) == IMAGES
    assert {found[name]["path"] for name in own} == {f"{at:03}.png" for at in range(IMAGES)}
    assert count(remote) == len(found)
    nearest = ids(search(remote, "killed", text="red", top_k=1000))
    assert len(set(nearest)) == len(nearest) == min(1000, len(found))
    for name in own[::20]:
        image = remote.get(f"/v1/galleries/killed/images/{name}", params={"include": "vector"})
        assert np.linalg.norm(image.json()["vector"]) == pytest.approx(1.0, abs=1e-5)
        jpeg = remote.get(f"/v1/galleries/killed/images/{name}/thumbnail").content
        assert Image.open(io.BytesIO(jpeg)).size == (16, 16)


@contextlib.contextmanager
def small_disk(place: Path) -> Iterator[None]:
    """A file system of 8 MB."""
    place.mkdir(parents=True)
    line = ["mount", "-t", "tmpfs", "-o", "size=8m", "tokenfold-test", str(place)]
    try:
        done = subprocess.run(line, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        pytest.skip("there is no mount")
    if done.returncode:
        pytest.skip("file systems may not be mounted")
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(place)], check=True)


def fill(file: Path) -> None:
    """Take all the room that is left, to the last byte."""
    with file.open("wb", 0) as written:
        for size in (65_536, 1):
            with contextlib.suppress(OSError):
                while written.write(bytes(size)):
                    pass


@pytest.mark.parametrize("how", ["disk", "limit"])
def test_a_full_disk(tmp_path: Path, how: str) -> None:
    root, data = tmp_path / "bundles", tmp_path / "data"
    bundle(root / "a")
    dual_bundle(root / "b")
    ballast = data / "ballast"
    with contextlib.ExitStack() as last:
        if how == "disk":
            last.enter_context(small_disk(data))
        running, remote = last.enter_context(process(root, data_dir=data))

        def limit(size: int) -> None:
            resource.prlimit(running.pid, resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))

        def full() -> None:
            if how == "limit":
                limit(0)
            else:
                fill(ballast)

        def empty() -> None:
            if how == "limit":
                limit(resource.RLIM_INFINITY)
            else:
                ballast.unlink()

        create(remote, "kept")
        added(add(remote, "kept", RED, BLUE, ids=["r", "b"], metadata=[{"n": 1}]))
        full()
        answers_as_a_full_disk_does(remote)
        empty()
        found = added(add(remote, "kept", GREEN, ids=["g"]))
        assert found[0]["status"] == "added"
        create(remote, "another")
        assert remote.get("/v1/galleries/kept").json()["images"] == 3
        full()
        assert remote.delete("/v1/galleries/another").status_code == 204
        assert [one["name"] for one in remote.get("/v1/galleries").json()["galleries"]] == ["kept"]


def answers_as_a_full_disk_does(remote: Remote) -> None:
    """Writes are a 507; whatever else there is goes on."""
    path = "/v1/galleries/kept"
    failed = "tokenfold_gallery_ingested_images_total"
    before = remote.sample(failed, status="failed")
    writes: list[Callable[[], httpx.Response]] = [
        lambda: add(remote, "kept", GREEN, RED, ids=["g", "x"]),
        lambda: add(remote, "kept", RED, ids=["r"], metadata=[{"n": 2}]),
        lambda: remote.post("/v1/galleries", json={"name": "other"}),
        lambda: remote.delete(f"{path}/images/r"),
        lambda: remote.post(f"{path}/delete-images", json={"ids": ["r"]}),
    ]
    for write in writes * 2:
        assert "No room is left" in problem(write(), 507, "storage-full")
    assert remote.sample(failed, status="failed") == before + 6
    # What is there already needs no room.
    assert added(add(remote, "kept", RED, ids=["r"]))[0]["status"] == "unchanged"
    assert remote.get(path).json()["images"] == 2
    assert ids(search(remote, "kept", text="red")) == ["r", "b"]
    assert ids(search(remote, "kept", id="r")) == ["b"]
    images = remote.get(f"{path}/images").json()["images"]
    assert [(one["id"], one["metadata"]) for one in images] == [("b", {"n": 1}), ("r", {"n": 1})]
    assert remote.get(f"{path}/images/r/thumbnail").status_code == 200
    assert [one["name"] for one in remote.get("/v1/galleries").json()["galleries"]] == ["kept"]
    assert remote.classify(RED, model="colours").status_code == 200
    assert remote.get("/readyz").status_code == 200
