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
from tokenfold.service.galleries.inference import embed_images, embed_text, match_scores
from tokenfold.service.galleries.metrics import By
from tokenfold.service.galleries.own import own_choice
from tokenfold.service.galleries.record import Hit
from tokenfold.service.galleries.table import Gallery
from tokenfold.service.scheduling.catalog import ServedModel
from tokenfold.service.scheduling.dispatcher import Dispatcher, Gone


class Query(NamedTuple):
    """A query.

    Attributes:
        by: kind of the query.
        sought: a text; an encoded image, as bytes or base64; or the id of an image.
        selector: of the level of a query image; by default the gallery's level.
        top_k: number of images to return.
        offset: number of images to skip.
        filter: filter on the metadata.
        exact: whether to compare with every image, even if there is an index.
    """

    by: By
    sought: bytes | str
    selector: Selector
    top_k: int
    offset: int = 0
    filter: Mapping[str, Any] | None = None
    exact: bool = False


class Rerank(NamedTuple):
    """How to re-rank.

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
        found: the images, best first.
        reduction: level and cost of a query image.
        rerank: description of the re-ranking, if any.
        timings_ms: milliseconds by stage.
    """

    found: list[Ranked]
    reduction: dict[str, Any] | None
    rerank: dict[str, Any] | None
    timings_ms: dict[str, float]


async def search(
    dispatcher: Dispatcher,
    gallery: Gallery,
    model: ServedModel | None,
    query: Query,
    *,
    rerank: Rerank | None = None,
    gone: Gone | None = None,
) -> Searched:
    """Return the images that fit a query best, best first.

    Args:
        dispatcher: embeds the query, and re-ranks.
        gallery: the gallery.
        model: the gallery's model; None if the query is an id.
        query: the query.
        rerank: how to re-rank the results of a text query.
        gone: returns when the caller has gone away.

    Raises:
        UnknownImage: the gallery has no image of that id.
        InvalidFilter: the filter cannot be evaluated.
        RequestError: the query cannot be embedded, or the results not re-ranked, at the moment.
    """
    begun = time.perf_counter()
    vector, reduction = await _vector(dispatcher, gallery, model, query, gone)
    embedded = time.perf_counter()
    hits = await _nearest(gallery, vector, query, rerank.candidates if rerank else 0)
    searched = time.perf_counter()
    timings = {"embed": embedded - begun, "search": searched - embedded}
    ranked = [Ranked(hit) for hit in hits]
    told = None
    if rerank is not None:
        assert isinstance(query.sought, str)  # a text
        ranked, told = await _reranked(dispatcher, gallery, ranked, query, rerank, gone)
        timings["rerank"] = time.perf_counter() - searched
    return Searched(
        ranked[query.offset : query.offset + query.top_k],
        reduction,
        told,
        {stage: round(seconds * 1000, 3) for stage, seconds in timings.items()},
    )


async def _vector(
    dispatcher: Dispatcher,
    gallery: Gallery,
    model: ServedModel | None,
    query: Query,
    gone: Gone | None,
) -> tuple[npt.NDArray[np.float32], dict[str, Any] | None]:
    if query.by == "id":
        assert isinstance(query.sought, str)
        row = await gallery.fetch(query.sought, vector=True)
        if row is None:
            raise UnknownImage(f"{gallery.info.name} has no image {query.sought!r}.")
        return row.vector, None
    assert model is not None
    if query.by == "text":
        assert isinstance(query.sought, str)
        embedded = await embed_text(dispatcher, model, query.sought, gone=gone)
        return embedded.vector, None
    chosen = any(value is not None for value in query.selector)
    choice = query.selector if chosen else own_choice(model, gallery.info)
    (found,) = await embed_images(dispatcher, model, [query.sought], choice, gone=gone)
    if isinstance(found, RequestError):
        raise found
    return found.vector, found.reduction


async def _nearest(
    gallery: Gallery, vector: npt.NDArray[np.float32], query: Query, candidates: int
) -> list[Hit]:
    """Return the nearest images, as many as the query and the re-ranking need."""
    itself = query.by == "id"
    hits = await gallery.search(
        vector,
        top_k=max(query.offset + query.top_k, candidates) + itself,
        filter=query.filter,
        exact=query.exact,
    )
    # The image itself is no result.
    return [hit for hit in hits if not (itself and hit.id == query.sought)]


async def _reranked(
    dispatcher: Dispatcher,
    gallery: Gallery,
    ranked: Sequence[Ranked],
    query: Query,
    rerank: Rerank,
    gone: Gone | None,
) -> tuple[list[Ranked], dict[str, Any] | None]:
    """Re-rank the best images. The others follow in their order.

    The thumbnails are matched: galleries keep no originals, and thumbnails are as large as the
    input of the networks. An image that was deleted meanwhile, or fails, goes behind the others.
    """
    assert isinstance(query.sought, str)
    best = ranked[: rerank.candidates]
    pictures = await gallery.thumbnails([one.hit.id for one in best])
    seen = [one for one in best if one.hit.id in pictures]
    if not seen:
        return list(ranked), None
    matched = await match_scores(
        dispatcher,
        rerank.model,
        [pictures[one.hit.id] for one in seen],
        query.sought,
        query.selector,
        gone=gone,
    )
    scores = {
        one.hit.id: score
        for one, score in zip(seen, matched.scores, strict=True)
        if not isinstance(score, RequestError)
    }
    # Equal scores keep the order of their similarity.
    again = sorted(
        (Ranked(one.hit, scores[one.hit.id]) for one in best if one.hit.id in scores),
        key=lambda one: -one.score,
    )
    others = [one for one in ranked if one.hit.id not in scores]
    told = {
        "model": rerank.model.name,
        "candidates": len(scores),
        "reduction": matched.reduction,
    }
    return again + others, told
