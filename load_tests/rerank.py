"""Measure the benefit of reranking: search held-out scenes by their texts, with and without it.

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
# First of the held-out scenes that no profile and no training run used.
FIRST = 60_000
TEXTS: dict[str, Callable[[scenes.Scene, np.random.Generator], str]] = {
    "captions": scenes.true_caption,
    "descriptions": description,
}
_BATCH = 25
_TOP_K = 5


@dataclass(frozen=True)
class RerankResult:
    """Search quality for one kind of text.

    Attributes:
        rerank: number of reranked candidates; 0 for none.
        first, among_five: fraction of texts whose image ranks first, or among the first five.
        p50_ms: median duration of a search inside the service.
    """

    texts: str
    rerank: int
    first: float
    among_five: float
    p50_ms: float


def measure(
    client: httpx.Client, images: int, texts: int, candidates: int
) -> Iterator[RerankResult]:
    """Fill a gallery, then search for its first images by each kind of text."""
    seeds = scenes.HELD_OUT[FIRST : FIRST + images]
    client.post("/v1/galleries", json={"name": "held-out", "model": MODEL}).raise_for_status()
    batches = range(0, images, _BATCH)
    for start in track(batches, "add images", console=Console(stderr=True), transient=True):
        batch = seeds[start : start + _BATCH]
        client.post(
            "/v1/galleries/held-out/images",
            files=[("image", _png(seed)) for seed in batch],
            data={"id": [str(seed) for seed in batch]},
        ).raise_for_status()
    for kind, describe in TEXTS.items():
        queries = [
            (str(seed), describe(scenes.scene(seed), np.random.default_rng(seed)))
            for seed in seeds[:texts]
        ]
        for rerank in (0, candidates):
            ranks, times = [], []
            for seed, text in queries:
                request = {"text": text, "top_k": _TOP_K}
                if rerank:
                    request |= {"rerank": rerank, "rerank_model": MATCHER}
                response = client.post("/v1/galleries/held-out/search", json=request)
                answer = response.raise_for_status().json()
                ids = [hit["id"] for hit in answer["results"]]
                ranks.append(ids.index(seed) if seed in ids else _TOP_K)
                times.append(sum(answer["timings_ms"].values()))
            yield RerankResult(
                kind,
                rerank,
                sum(rank == 0 for rank in ranks) / len(ranks),
                sum(rank < _TOP_K for rank in ranks) / len(ranks),
                statistics.median(times),
            )


def _png(seed: int) -> tuple[str, bytes, str]:
    return f"{seed}.png", scenes.png(scenes.scene(seed), compress_level=1), "image/png"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m load_tests.rerank",
        description="Measure the benefit of reranking search results.",
    )
    default = "default: %(default)s"
    parser.add_argument(
        "--images", type=between(int, 1, 10_000), default=1000, help=f"gallery size; {default}"
    )
    parser.add_argument(
        "--texts", type=between(int, 1, 10_000), default=200, help=f"texts of each kind; {default}"
    )
    parser.add_argument(
        "--candidates", type=between(int, 1, 100), default=20, help=f"reranked images; {default}"
    )
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")
    options = parser.parse_args(arguments)
    with (
        tempfile.TemporaryDirectory() as data,
        serving(["--bundles", str(DEMO), "--data-dir", data]) as service,
        httpx.Client(
            base_url=f"http://{service.address.host}:{service.address.port}", timeout=60
        ) as client,
    ):
        results = list(measure(client, options.images, options.texts, options.candidates))
    if options.json:
        print(json.dumps([asdict(result) for result in results], indent=2))
        return 0
    table = Table("texts", "reranked", "first", "among five", "p50 ms", box=SIMPLE)
    for result in results:
        table.add_row(
            result.texts,
            str(result.rerank),
            f"{result.first:.1%}",
            f"{result.among_five:.1%}",
            f"{result.p50_ms:.1f}",
        )
    Console().print(table)
    return 0


if __name__ == "__main__":
    sys.exit(main())
