"""What it is worth to look again at the best of a search: scenes held out, found by their texts.

python -m load_tests.rerank --images 1000 --texts 200 --candidates 20
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass

import httpx
import numpy as np
from rich.box import SIMPLE
from rich.console import Console
from rich.progress import track
from rich.table import Table

from load_tests.arguments import between
from load_tests.server import serving
from tokenfold import scenes
from tokenfold.scenes.descriptions import description
from tokenfold.service.settings import DEMO

MODEL, MATCHER = "scenes-retrieval", "scenes"
# Held-out scenes that no profile and no training run looked at.
FIRST = 60_000
TEXTS: dict[str, Callable[[scenes.Scene, np.random.Generator], str]] = {
    "captions": scenes.true_caption,
    "descriptions": description,
}
_BATCH = 25
_LOOKED_AT = 5


@dataclass(frozen=True)
class Found:
    """How well texts of a kind find their own image.

    Attributes:
        rerank: images looked at again; 0 for none.
        first, among_five: share of texts whose image comes first, or is among the first five.
        p50_ms: of a search, in the service.
    """

    texts: str
    rerank: int
    first: float
    among_five: float
    p50_ms: float


def measure(client: httpx.Client, images: int, texts: int, candidates: int) -> Iterator[Found]:
    """Fill a gallery, and ask for the first of its images by each kind of text."""
    seeds = scenes.HELD_OUT[FIRST : FIRST + images]
    client.post("/v1/galleries", json={"name": "held-out", "model": MODEL}).raise_for_status()
    batches = range(0, images, _BATCH)
    for at in track(batches, "add images", console=Console(stderr=True), transient=True):
        some = seeds[at : at + _BATCH]
        client.post(
            "/v1/galleries/held-out/images",
            files=[("image", _png(seed)) for seed in some],
            data={"id": [str(seed) for seed in some]},
        ).raise_for_status()
    for kind, say in TEXTS.items():
        asked = [
            (str(seed), say(scenes.scene(seed), np.random.default_rng(seed)))
            for seed in seeds[:texts]
        ]
        for rerank in (0, candidates):
            places, times = [], []
            for seed, text in asked:
                wanted = {"text": text, "top_k": _LOOKED_AT}
                if rerank:
                    wanted |= {"rerank": rerank, "rerank_model": MATCHER}
                answer = client.post("/v1/galleries/held-out/search", json=wanted)
                found = answer.raise_for_status().json()
                ids = [one["id"] for one in found["results"]]
                places.append(ids.index(seed) if seed in ids else _LOOKED_AT)
                times.append(sum(found["timings_ms"].values()))
            yield Found(
                kind,
                rerank,
                sum(place == 0 for place in places) / len(places),
                sum(place < _LOOKED_AT for place in places) / len(places),
                statistics.median(times),
            )


def _png(seed: int) -> tuple[str, bytes, str]:
    return f"{seed}.png", scenes.png(scenes.scene(seed), compress_level=1), "image/png"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m load_tests.rerank",
        description="What it is worth to look again at the best of a search.",
    )
    shown = "default: %(default)s"
    parser.add_argument(
        "--images", type=between(int, 1, 10_000), default=1000, help=f"of the gallery; {shown}"
    )
    parser.add_argument(
        "--texts", type=between(int, 1, 10_000), default=200, help=f"of each kind; {shown}"
    )
    parser.add_argument(
        "--candidates", type=between(int, 1, 100), default=20, help=f"looked at again; {shown}"
    )
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")
    options = parser.parse_args(arguments)
    with (
        tempfile.TemporaryDirectory() as data,
        serving(["--bundles", str(DEMO), "--data-dir", data]) as service,
        httpx.Client(
            base_url=f"http://{service.target.host}:{service.target.port}", timeout=60
        ) as client,
    ):
        found = list(measure(client, options.images, options.texts, options.candidates))
    if options.json:
        print(json.dumps([asdict(one) for one in found], indent=2))
        return 0
    table = Table("texts", "looked at again", "first", "among five", "p50 ms", box=SIMPLE)
    for one in found:
        table.add_row(
            one.texts,
            str(one.rerank),
            f"{one.first:.1%}",
            f"{one.among_five:.1%}",
            f"{one.p50_ms:.1f}",
        )
    Console().print(table)
    return 0


if __name__ == "__main__":
    sys.exit(main())
