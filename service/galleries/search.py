"""Search: the vector of a query, the nearest images, and re-ranking of the best."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from tokenfold.inference.errors import RequestError
from tokenfold.inference.levels import Selector
from tokenfold.service.errors import UnknownImage
from tokenfold.service.galleries.inference import GalleryInference
from tokenfold.service.galleries.metrics import QueryKind
from tokenfold.service.galleries.model import gallery_choice
from tokenfold.service.galleries.record import Hit
from tokenfold.service.galleries.table import Gallery
from tokenfold.service.scheduling.catalog import ServedModel


class Query(NamedTuple):
    """A query.

    Attributes:
        kind: kind of the query.
        value: a text; an encoded image, as bytes or base64; or the id of an image.
        selector: of the level of a query image; by default the gallery's level.
        top_k: number of images to return.
        offset: number of images to skip.
        filter: filter on the metadata.
        exact: whether to compare with every image, even if there is an index.
    """

    kind: QueryKind
    value: bytes | str
    selector: Selector
    top_k: int
    offset: int = 0
    filter: Mapping[str, Any] | None = None
    exact: bool = False


class Rerank(NamedTuple):
    """Options of a re-ranking.

    Attributes:
        model: a model with the task `match`.
        candidates: number of the best images to re-rank, 1 or more.
    """

    model: ServedModel
    candidates: int


class Ranked(NamedTuple):
    """A search result.

    Attributes:
        hit: the image.
        match: the match score, 0 to 1, if it was re-ranked.
    """

    hit: Hit
    match: float | None = None

    @property
    def score(self) -> float:
        """The score that orders the results: the cosine, -1 to 1, plus the match score if any.

        The sum follows the evaluation of BLIP (Li et al. 2022). The match score alone ranks worse
        than the cosine if texts are longer than the network reads.
        """
        return self.hit.score + (self.match or 0.0)


class Searched(NamedTuple):
    """The results of a search.

    Attributes:
        results: the images, best first.
        reduction: level and cost of a query image.
        rerank: description of the re-ranking, if any.
        timings_ms: milliseconds by stage.
    """

    results: list[Ranked]
    reduction: dict[str, Any] | None
    rerank: dict[str, Any] | None
    timings_ms: dict[str, float]


async def search(
    inference: GalleryInference,
    gallery: Gallery,
    model: ServedModel | None,
    query: Query,
    *,
    rerank: Rerank | None = None,
) -> Searched:
    """Return the images that fit a query best, best first.

    Args:
        inference: embeds the query, and re-ranks.
        gallery: the gallery.
        model: the gallery's model; None if the query is an id.
        query: the query.
        rerank: options of the re-ranking of a text query, if any.

    Raises:
        UnknownImage: the gallery has no image of that id.
        InvalidFilter: the filter cannot be evaluated.
        RequestError: the query cannot be embedded at the moment, or the results cannot be
            re-ranked.
    """
    begun = time.perf_counter()
    vector, reduction = await _vector(inference, gallery, model, query)
    embedded = time.perf_counter()
    hits = await _nearest(gallery, vector, query, rerank.candidates if rerank else 0)
    searched = time.perf_counter()
    timings = {"embed": embedded - begun, "search": searched - embedded}
    ranked = [Ranked(hit) for hit in hits]
    description = None
    if rerank is not None:
        assert isinstance(query.value, str)  # a text
        ranked, description = await _reranked(inference, gallery, ranked, query, rerank)
        timings["rerank"] = time.perf_counter() - searched
    return Searched(
        ranked[query.offset : query.offset + query.top_k],
        reduction,
        description,
        {stage: round(seconds * 1000, 3) for stage, seconds in timings.items()},
    )


async def _vector(
    inference: GalleryInference,
    gallery: Gallery,
    model: ServedModel | None,
    query: Query,
) -> tuple[npt.NDArray[np.float32], dict[str, Any] | None]:
    if query.kind == "id":
        assert isinstance(query.value, str)
        row = await gallery.fetch(query.value, vector=True)
        if row is None:
            raise UnknownImage(f"{gallery.info.name} has no image {query.value!r}.")
        return row.vector, None
    assert model is not None
    if query.kind == "text":
        assert isinstance(query.value, str)
        embedded = await inference.embed_text(model, query.value)
        return embedded.vector, None
    chosen = any(value is not None for value in query.selector)
    choice = query.selector if chosen else gallery_choice(model, gallery.info)
    (embedding,) = await inference.embed_images(model, [query.value], choice)
    if isinstance(embedding, RequestError):
        raise embedding
    return embedding.vector, embedding.reduction


async def _nearest(
    gallery: Gallery, vector: npt.NDArray[np.float32], query: Query, candidates: int
) -> list[Hit]:
    """Return the nearest images, as many as the query and the re-ranking need."""
    itself = query.kind == "id"
    hits = await gallery.search(
        vector,
        top_k=max(query.offset + query.top_k, candidates) + itself,
        filter=query.filter,
        exact=query.exact,
    )
    # The image itself is no result.
    return [hit for hit in hits if not (itself and hit.id == query.value)]


async def _reranked(
    inference: GalleryInference,
    gallery: Gallery,
    ranked: Sequence[Ranked],
    query: Query,
    rerank: Rerank,
) -> tuple[list[Ranked], dict[str, Any] | None]:
    """Re-rank the best images. The others follow in their order.

    The thumbnails are matched: galleries keep no originals, and thumbnails are as large as the
    input of the networks. An image that was deleted meanwhile, or fails, goes behind the others.
    """
    assert isinstance(query.value, str)
    best = ranked[: rerank.candidates]
    pictures = await gallery.thumbnails([result.hit.id for result in best])
    candidates = [result for result in best if result.hit.id in pictures]
    if not candidates:
        return list(ranked), None
    matched = await inference.match_scores(
        rerank.model,
        [pictures[result.hit.id] for result in candidates],
        query.value,
        query.selector,
    )
    scores = {
        result.hit.id: score
        for result, score in zip(candidates, matched.scores, strict=True)
        if not isinstance(score, RequestError)
    }
    # Equal scores keep the order of their similarity.
    reranked = sorted(
        (Ranked(result.hit, scores[result.hit.id]) for result in best if result.hit.id in scores),
        key=lambda result: -result.score,
    )
    others = [result for result in ranked if result.hit.id not in scores]
    description = {
        "model": rerank.model.name,
        "candidates": len(scores),
        "reduction": matched.reduction,
    }
    return reranked + others, description
