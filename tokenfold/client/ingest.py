"""The command: what the gallery has is not sent again, so that it goes on where it was stopped."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
)

from tokenfold.client.folder import Failure, batches, walk, written
from tokenfold.client.gallery import Client, Outcome, Stop

_LISTED = 20  # failures, at the end


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


def _count(text: str) -> int:
    count = int(text)
    if count < 1:
        raise argparse.ArgumentTypeError("must be 1 or more")
    return count


if __name__ == "__main__":
    sys.exit(main())
