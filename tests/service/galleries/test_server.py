"""A server process that is killed during an ingest, or runs out of disk space."""

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
    """Return a PNG that is unique to the seed."""
    values = np.random.default_rng(seed).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    return encoded(Image.fromarray(values))


def free_port() -> int:
    """Return a port that is free now."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        return int(listening.getsockname()[1])


def count(remote: Remote) -> int:
    return int(remote.get("/v1/galleries/killed").json()["images"])


class ConcurrentClient:
    """Another client, which adds images one by one and records the acknowledged ones."""

    def __init__(self, url: str) -> None:
        self.acknowledged: set[str] = set()
        self._url = url
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> ConcurrentClient:
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


def test_a_server_killed_during_an_ingest(tmp_path: Path) -> None:
    draw = random.Random(4)
    photos, root, port = tmp_path / "photos", tmp_path / "bundles", free_port()
    photos.mkdir()
    for index in range(IMAGES):
        (photos / f"{index:03}.png").write_bytes(noise(index))
    dual_bundle(root / "a")
    command = [sys.executable, "-m", "tokenfold", "ingest", str(photos), "--gallery=killed"]
    command += ["--create", f"--server=http://127.0.0.1:{port}", "--batch=2", "--parallel=3"]
    with contextlib.ExitStack() as stack:
        ingest: subprocess.Popen[str] | None = None
        stored: set[str] = set()
        for turn in range(KILLS + 1):
            with process(root, port=port) as (running, remote):
                if ingest is None:
                    create(remote, "killed")
                    ingest = stack.enter_context(
                        subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
                    )
                    stack.callback(ingest.kill)
                    other = stack.enter_context(ConcurrentClient(remote.url))
                acknowledged = set(other.acknowledged)
                stored_now = set(listed(remote))
                assert stored <= stored_now
                assert acknowledged <= stored_now
                if turn < KILLS:
                    before = count(remote)
                    until(lambda: count(remote) > before + 10, 20)  # noqa: B023
                    time.sleep(draw.uniform(0.0, 0.2))
                    stored = set(listed(remote))
                    assert ingest.poll() is None, "the ingest finished before the kills"
                    running.send_signal(signal.SIGKILL)
                    running.wait()
                    continue
                _, stderr = ingest.communicate(timeout=60)
                assert ingest.returncode == 0, stderr
                stack.close()
                check(remote, other.acknowledged)
                # Repeating the command sends nothing.
                repeated = subprocess.run(command, capture_output=True, text=True, timeout=60)
                assert repeated.returncode == 0, repeated.stderr
                assert f"{IMAGES} already present" in repeated.stderr


def listed(remote: Remote) -> dict[str, Any]:
    """Return the metadata of all images by id."""
    metadata_by_id: dict[str, Any] = {}
    query: dict[str, str] = {"limit": "1000"}
    while True:
        page = remote.get("/v1/galleries/killed/images", params=query).json()
        metadata_by_id |= {image["id"]: image["metadata"] for image in page["images"]}
        if "next" not in page:
            return metadata_by_id
        query["after"] = page["next"]


def check(remote: Remote, acknowledged: set[str]) -> None:
    """Check that every image is stored completely and once."""
    metadata_by_id = listed(remote)
    assert acknowledged <= set(metadata_by_id)
    ingested = sorted(name for name in metadata_by_id if not name.startswith("other-"))
    assert len(ingested) == IMAGES
    assert {metadata_by_id[name]["path"] for name in ingested} == {
        f"{index:03}.png" for index in range(IMAGES)
    }
    assert count(remote) == len(metadata_by_id)
    nearest = ids(search(remote, "killed", text="red", top_k=1000))
    assert len(set(nearest)) == len(nearest) == min(1000, len(metadata_by_id))
    for name in ingested[::20]:
        image = remote.get(f"/v1/galleries/killed/images/{name}", params={"include": "vector"})
        assert np.linalg.norm(image.json()["vector"]) == pytest.approx(1.0, abs=1e-5)
        jpeg = remote.get(f"/v1/galleries/killed/images/{name}/thumbnail").content
        assert Image.open(io.BytesIO(jpeg)).size == (16, 16)


@contextlib.contextmanager
def small_disk(folder: Path) -> Iterator[None]:
    """Mount a file system of 8 MB."""
    folder.mkdir(parents=True)
    command = ["mount", "-t", "tmpfs", "-o", "size=8m", "tokenfold-test", str(folder)]
    try:
        mounted = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        pytest.skip("mount is not installed")
    if mounted.returncode:
        pytest.skip("mounting file systems is not permitted")
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def fill(file: Path) -> None:
    """Fill the rest of the disk, to the last byte."""
    with file.open("wb", 0) as output:
        for size in (65_536, 1):
            with contextlib.suppress(OSError):
                while output.write(bytes(size)):
                    pass


@pytest.mark.parametrize("limit_type", ["disk", "limit"])
def test_a_full_disk(tmp_path: Path, limit_type: str) -> None:
    root, data = tmp_path / "bundles", tmp_path / "data"
    bundle(root / "a")
    dual_bundle(root / "b")
    ballast = data / "ballast"
    with contextlib.ExitStack() as stack:
        if limit_type == "disk":
            stack.enter_context(small_disk(data))
        running, remote = stack.enter_context(process(root, data_dir=data))

        def limit(size: int) -> None:
            resource.prlimit(running.pid, resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))

        def full() -> None:
            if limit_type == "limit":
                limit(0)
            else:
                fill(ballast)

        def empty() -> None:
            if limit_type == "limit":
                limit(resource.RLIM_INFINITY)
            else:
                ballast.unlink()

        create(remote, "kept")
        added(add(remote, "kept", RED, BLUE, ids=["r", "b"], metadata=[{"n": 1}]))
        full()
        check_full_disk(remote)
        empty()
        results = added(add(remote, "kept", GREEN, ids=["g"]))
        assert results[0]["status"] == "added"
        create(remote, "another")
        assert remote.get("/v1/galleries/kept").json()["images"] == 3
        full()
        assert remote.delete("/v1/galleries/another").status_code == 204
        assert [entry["name"] for entry in remote.get("/v1/galleries").json()["galleries"]] == [
            "kept"
        ]


def check_full_disk(remote: Remote) -> None:
    """Check that writes return 507, and that everything else still works."""
    path = "/v1/galleries/kept"
    metric = "tokenfold_gallery_ingested_images_total"
    before = remote.sample(metric, status="failed")
    writes: list[Callable[[], httpx.Response]] = [
        lambda: add(remote, "kept", GREEN, RED, ids=["g", "x"]),
        lambda: add(remote, "kept", RED, ids=["r"], metadata=[{"n": 2}]),
        lambda: remote.post("/v1/galleries", json={"name": "other"}),
        lambda: remote.delete(f"{path}/images/r"),
        lambda: remote.post(f"{path}/delete-images", json={"ids": ["r"]}),
    ]
    for write in writes * 2:
        assert "storage of the galleries is full" in problem(write(), 507, "storage-full")
    assert remote.sample(metric, status="failed") == before + 6
    # An unchanged image needs no space.
    assert added(add(remote, "kept", RED, ids=["r"]))[0]["status"] == "unchanged"
    assert remote.get(path).json()["images"] == 2
    assert ids(search(remote, "kept", text="red")) == ["r", "b"]
    assert ids(search(remote, "kept", id="r")) == ["b"]
    images = remote.get(f"{path}/images").json()["images"]
    assert [(entry["id"], entry["metadata"]) for entry in images] == [
        ("b", {"n": 1}),
        ("r", {"n": 1}),
    ]
    assert remote.get(f"{path}/images/r/thumbnail").status_code == 200
    assert [entry["name"] for entry in remote.get("/v1/galleries").json()["galleries"]] == ["kept"]
    assert remote.classify(RED, model="colours").status_code == 200
    assert remote.get("/readyz").status_code == 200
