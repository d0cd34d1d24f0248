"""`tokenfold ingest`: a folder of images into a gallery of a running server.

What the gallery has is not sent again, so that the same command goes on where it was stopped.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

import httpx
from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
)

SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff"}
# Bytes of the images of a request: servers take 32 MiB, if nobody has told them otherwise.
_MOST_BYTES = 24 * 1024 * 1024
# Tries of a request that a busy or restarting server has not answered, and the longest pause.
_TRIES = 8
_LONGEST_PAUSE = 30.0
# The server is busy, or starting, or it is not the server that answers (a proxy before it).
_AGAIN = (502, 503, 504)
# Kinds of problems that no other image would escape.
_HOPELESS = (":unknown-gallery", ":other-model", ":storage-full", ":storage-failed")
_LISTED = 20  # failures, at the end


class Stop(Exception):  # noqa: N818 - not every end is an error
    """There is no point in going on; the message says why."""


class Picture(NamedTuple):
    """A file that is to be sent.

    Attributes:
        id: hex of its SHA-256.
        path: below the folder.
    """

    id: str
    path: Path
    content: bytes


Failure = tuple[Path, str]
"""A file, and why it is not in the gallery."""


class Outcome(NamedTuple):
    """What became of a batch.

    Attributes:
        kept: images that are in the gallery now.
        failed: the others.
    """

    kept: int
    failed: list[Failure]


class Client:
    """A gallery of a server."""

    def __init__(self, server: str, gallery: str) -> None:
        self._http = httpx.Client(
            base_url=server if "://" in server else f"http://{server}",
            timeout=httpx.Timeout(120.0, connect=10.0),
            limits=httpx.Limits(max_connections=None),
        )
        self._path = f"/v1/galleries/{quote(gallery, safe='')}"
        self._gallery = gallery
        self._stopping = threading.Event()

    def close(self) -> None:
        """Wait no longer for anything."""
        self._stopping.set()
        self._http.close()

    def open(self, *, create: bool, model: str | None, level: str | None) -> dict[str, Any]:
        """The gallery's description, of a new one if need be.

        Args:
            create: whether it may be a new one, of `model` at `level`, or of the server's default.

        Raises:
            Stop: there is none, or it is another model's.
        """
        response = self._send("GET", self._path)
        if response.status_code == 404 and create:
            chosen = {"model": model, "level": level}
            given = {name: value for name, value in chosen.items() if value is not None}
            body = {"name": self._gallery, **given}
            response = self._send("POST", "/v1/galleries", json=body)
            if response.status_code == 409:  # somebody else was faster
                response = self._send("GET", self._path)
        if response.status_code == 404:
            raise Stop(f"{_detail(response)} --create makes it.")
        found = _checked(response)
        for name, wanted in (("model", model), ("level", level)):
            if wanted is not None and found[name] != wanted:
                raise Stop(f"The {name} of {self._gallery} is {found[name]}, not {wanted}.")
        return found

    def known(self) -> set[str]:
        """The ids of all images that it has."""
        ids: set[str] = set()
        after: dict[str, str] = {}
        while True:
            response = self._send("GET", f"{self._path}/images", params={"limit": "1000", **after})
            page = _checked(response)
            ids.update(image["id"] for image in page["images"])
            if page.get("next") is None:
                return ids
            after = {"after": page["next"]}

    def add(self, pictures: Sequence[Picture]) -> Outcome:
        """Send images; 1 or more.

        Raises:
            Stop: the server takes no more of them at all.
        """
        response = self._send(
            "POST",
            f"{self._path}/images",
            data={
                "id": [picture.id for picture in pictures],
                "metadata": [json.dumps({"path": written(picture.path)}) for picture in pictures],
            },
            files=[("image", (picture.id, picture.content)) for picture in pictures],
        )
        if response.status_code == 413 and len(pictures) > 1:
            # Together they are too large for one request; each by itself may not be.
            each = [self.add([picture]) for picture in pictures]
            return Outcome(
                sum(one.kept for one in each), [found for one in each for found in one.failed]
            )
        try:
            answer = response.json()
        except ValueError:
            raise Stop(_detail(response)) from None
        if response.status_code in _AGAIN or answer.get("type", "").endswith(_HOPELESS):
            raise Stop(_detail(response))
        # If every one failed, there is a list only of several.
        results = answer.get("results") or [{"problem": answer}] * len(pictures)
        busy: list[Picture] = []
        failed: list[Failure] = []
        for picture, result in zip(pictures, results, strict=True):
            if "problem" in result and result["problem"]["status"] == 503:
                busy.append(picture)
            elif "problem" in result:
                failed.append((picture.path, result["problem"]["detail"]))
        kept = len(pictures) - len(busy) - len(failed)
        # The time of the request ran out: those that are left take less. (All would be a 503.)
        later = self.add(busy) if busy else Outcome(0, [])
        return Outcome(kept + later.kept, failed + later.failed)

    def _send(self, method: str, path: str, **options: Any) -> httpx.Response:
        """Once more, after a while, where the server is busy or gone for a moment."""
        for turn in range(_TRIES):
            pause = min(0.5 * 2**turn, _LONGEST_PAUSE)
            try:
                response = self._http.request(method, path, **options)
            except httpx.TransportError as error:
                if turn == _TRIES - 1 or self._stopping.is_set():
                    raise Stop(f"{self._http.base_url} does not answer: {error}") from error
            else:
                if response.status_code not in _AGAIN or turn == _TRIES - 1:
                    return response
                told = response.headers.get("retry-after", "")
                pause = min(float(told), _LONGEST_PAUSE) if told.isdecimal() else pause
            if self._stopping.wait(pause):
                raise Stop("stopped")
        raise AssertionError("the last try returns or raises")


def written(path: Path) -> str:
    """A path as text, whatever bytes its name has."""
    return os.fsencode(path).decode(errors="replace")


def walk(folder: Path, failed: list[Failure]) -> Iterator[Path]:
    """The images below a folder, in order; nothing hidden.

    Args:
        failed: is told of folders that cannot be read.
    """
    try:
        entries = sorted(folder.iterdir())
    except OSError as error:
        failed.append((folder, _reason(error)))
        return
    for entry in entries:
        if entry.name.startswith("."):
            continue
        if entry.is_dir() and not entry.is_symlink():
            yield from walk(entry, failed)
        elif entry.is_file() and entry.suffix.lower() in SUFFIXES:
            yield entry


def batches(
    folder: Path, known: set[str], size: int, *, skipped: list[Path], failed: list[Failure]
) -> Iterator[list[Picture]]:
    """What is to be sent, in requests of at most `size` images and not too many bytes.

    Args:
        known: ids that the gallery has; those that are sent are added.
        skipped: is told of the files whose content the gallery has, or another file.
        failed: is told of those that cannot be read.
    """
    batch: list[Picture] = []
    held = 0
    for file in walk(folder, failed):
        path = file.relative_to(folder)
        try:
            content = file.read_bytes()
        except OSError as error:
            failed.append((path, _reason(error)))
            continue
        name = hashlib.sha256(content).hexdigest()
        if name in known:
            skipped.append(path)
            continue
        known.add(name)
        if batch and (len(batch) == size or held + len(content) > _MOST_BYTES):
            yield batch
            batch, held = [], 0
        batch.append(Picture(name, path, content))
        held += len(content)
    if batch:
        yield batch


def send(
    client: Client, folder: Path, known: set[str], *, size: int, parallel: int, console: Console
) -> Outcome:
    """Everything that the gallery has not, with a progress bar.

    Raises:
        Stop: the server takes no more.
    """
    total = sum(1 for _ in walk(folder, []))
    skipped: list[Path] = []
    failed: list[Failure] = []
    kept = 0
    begun = time.monotonic()
    progress = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]:.1f} images/s"),
        TimeRemainingColumn(),
        console=console,
    )
    with progress, ThreadPoolExecutor(parallel) as pool:
        bar = progress.add_task("images", total=total, rate=0.0)
        pending: set[Future[Outcome]] = set()

        def collect(most: int) -> None:
            """Wait until at most so many requests are under way."""
            nonlocal kept, pending
            while len(pending) > most:
                done, pending = wait(pending, return_when=FIRST_COMPLETED)
                for outcome in (future.result() for future in done):
                    kept += outcome.kept
                    failed.extend(outcome.failed)
                progress.update(
                    bar,
                    completed=kept + len(failed) + len(skipped),
                    rate=kept / max(1e-9, time.monotonic() - begun),
                )

        try:
            for batch in batches(folder, known, size, skipped=skipped, failed=failed):
                # One more is read while the others are sent.
                collect(parallel)
                pending.add(pool.submit(client.add, batch))
            collect(0)
        except BaseException:
            for future in pending:
                future.cancel()
            client.close()  # the pool waits for what it does, pauses between two tries included
            raise
        progress.update(bar, completed=total)
    seconds = time.monotonic() - begun
    console.print(
        f"{kept} images sent in {seconds:.1f} s ({kept / max(seconds, 1e-9):.1f} images/s), "
        f"{len(skipped)} were there, {len(failed)} failed."
    )
    return Outcome(kept, failed)


def main(argv: Sequence[str] | None = None) -> int:
    """Run from the command line. Returns 0 when every image is in the gallery, otherwise 1."""
    parser = argparse.ArgumentParser(
        prog="tokenfold ingest",
        description="Send the images of a folder, and of those below it, to a gallery. What the "
        "gallery has is not sent again: the same command goes on where it was stopped.",
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--gallery", required=True, help="its name")
    parser.add_argument("--server", default="http://localhost:8000", help="default: %(default)s")
    parser.add_argument("--create", action="store_true", help="make the gallery if there is none")
    parser.add_argument("--model", help="of a new gallery; of an old one it is checked")
    parser.add_argument("--level", help="likewise")
    parser.add_argument(
        "--batch", type=_count, default=16, help="images of a request; default: %(default)s"
    )
    parser.add_argument(
        "--parallel", type=_count, default=4, help="requests at once; default: %(default)s"
    )
    options = parser.parse_args(argv)
    if not options.folder.is_dir():
        parser.error(f"{options.folder} is no folder")
    console = Console(stderr=True, highlight=False)
    client = Client(options.server, options.gallery)
    try:
        client.open(create=options.create, model=options.model, level=options.level)
        outcome = send(
            client,
            options.folder,
            client.known(),
            size=options.batch,
            parallel=options.parallel,
            console=console,
        )
    except Stop as error:
        console.print(f"tokenfold ingest: {escape(str(error))}", soft_wrap=True)
        return 1
    except KeyboardInterrupt:
        console.print("Stopped. The same command goes on from here.")
        return 130
    finally:
        client.close()
    for path, reason in outcome.failed[:_LISTED]:
        console.print(f"{escape(written(path))}: {escape(reason)}", soft_wrap=True)
    if len(outcome.failed) > _LISTED:
        console.print(f"and {len(outcome.failed) - _LISTED} more")
    return 1 if outcome.failed else 0


def _checked(response: httpx.Response) -> dict[str, Any]:
    if not response.is_success:
        raise Stop(_detail(response))
    found: dict[str, Any] = response.json()
    return found


def _detail(response: httpx.Response) -> str:
    try:
        return str(response.json()["detail"])
    except (ValueError, KeyError, TypeError):
        return f"{response.request.url} answers {response.status_code}"


def _reason(error: OSError) -> str:
    return error.strerror or str(error)


def _count(text: str) -> int:
    count = int(text)
    if count < 1:
        raise argparse.ArgumentTypeError("must be 1 or more")
    return count


if __name__ == "__main__":
    sys.exit(main())
