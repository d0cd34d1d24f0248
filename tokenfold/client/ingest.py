"""The `tokenfold ingest` command.

Images that the gallery has are not sent again, so an interrupted command can be repeated.
"""

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

from tokenfold.client.folder import Failure, batches, path_text, walk
from tokenfold.client.gallery import Client, Outcome, Stop

_MAX_LISTED = 20  # failures listed at the end


def send(
    client: Client, folder: Path, known: set[str], *, size: int, parallel: int, console: Console
) -> Outcome:
    """Send all images that the gallery lacks, and show a progress bar.

    Raises:
        Stop: the server accepts no images any more.
    """
    total = sum(1 for _ in walk(folder, []))
    skipped: list[Path] = []
    failed: list[Failure] = []
    kept = 0
    begin = time.monotonic()
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

        def collect(max_pending: int) -> None:
            """Wait until at most `max_pending` requests are in flight."""
            nonlocal kept, pending
            while len(pending) > max_pending:
                completed, pending = wait(pending, return_when=FIRST_COMPLETED)
                for outcome in (future.result() for future in completed):
                    kept += outcome.kept
                    failed.extend(outcome.failed)
                progress.update(
                    bar,
                    completed=kept + len(failed) + len(skipped),
                    rate=kept / max(1e-9, time.monotonic() - begin),
                )

        try:
            for batch in batches(folder, known, size, skipped=skipped, failed=failed):
                # The next batch is read while these are sent.
                collect(parallel)
                pending.add(pool.submit(client.add, batch))
            collect(0)
        except BaseException:
            for future in pending:
                future.cancel()
            client.close()  # ends the pauses between attempts, for which the pool would wait
            raise
        progress.update(bar, completed=total)
    seconds = time.monotonic() - begin
    console.print(
        f"{kept} images sent in {seconds:.1f} s ({kept / max(seconds, 1e-9):.1f} images/s), "
        f"{len(skipped)} already present, {len(failed)} failed."
    )
    return Outcome(kept, failed)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return 0 if every image is in the gallery, otherwise 1."""
    parser = argparse.ArgumentParser(
        prog="tokenfold ingest",
        description="Add the images of a folder and its subfolders to a gallery. Images that the "
        "gallery has are not sent again, so an interrupted command can be repeated.",
    )
    parser.add_argument("folder", type=Path, help="folder of the images")
    parser.add_argument("--gallery", required=True, help="name of the gallery")
    parser.add_argument(
        "--server", default="http://localhost:8000", help="URL; default: %(default)s"
    )
    parser.add_argument("--create", action="store_true", help="create the gallery if it is missing")
    parser.add_argument("--model", help="model of a new gallery; must match an existing one")
    parser.add_argument("--level", help="level of a new gallery; must match an existing one")
    parser.add_argument(
        "--batch", type=_count, default=16, help="images per request; default: %(default)s"
    )
    parser.add_argument(
        "--parallel", type=_count, default=4, help="concurrent requests; default: %(default)s"
    )
    options = parser.parse_args(argv)
    if not options.folder.is_dir():
        parser.error(f"{options.folder} is not a folder")
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
        console.print("Interrupted. Repeat the command to add the remaining images.")
        return 130
    finally:
        client.close()
    for path, reason in outcome.failed[:_MAX_LISTED]:
        console.print(f"{escape(path_text(path))}: {escape(reason)}", soft_wrap=True)
    if len(outcome.failed) > _MAX_LISTED:
        console.print(f"and {len(outcome.failed) - _MAX_LISTED} more")
    return 1 if outcome.failed else 0


def _count(text: str) -> int:
    count = int(text)
    if count < 1:
        raise argparse.ArgumentTypeError(f"{count} is less than the minimum, 1")
    return count


if __name__ == "__main__":
    sys.exit(main())
