"""From a query to images: its vector, the nearest ones, and the best of them looked at again."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from starlette.requests import Request

from tokenfold.service.core import Core
from tokenfold.service.embedding import choose, embed_images, embed_text
from tokenfold.service.errors import ApiError, UnknownImage
from tokenfold.service.galleries.metrics import By
from tokenfold.service.galleries.own import own_choice
from tokenfold.service.galleries.record import Hit
from tokenfold.service.galleries.table import Gallery
from tokenfold.service.matching import match_scores
from tokenfold.service.scheduling.catalog import Model
from tokenfold.service.scheduling.levels import Selector


class Query(NamedTuple):
    """What to look for, in one of three ways, and how much of it.

    Attributes:
        by: which of the three `sought` is.
        sought: a text; an image, as a file or base64 of one; or an image's id.
        selector: of the level of an image's embedding; without one it is the gallery's.
        exact: compare with every image, even where there is an index.
    """

    by: By
    sought: bytes | str
    selector: Selector
    top_k: int
    offset: int = 0
    filter: Mapping[str, Any] | None = None
    exact: bool = False


class Rerank(NamedTuple):
    """Who looks at the best again.

    Attributes:
        model: one that has the task "match".
        candidates: how many of the best, 1 or more.
    """

    model: Model
    candidates: int


class Ranked(NamedTuple):
    """An image that was found.

    Attributes:
        match: how well the text fits, 0 to 1, where it was looked at again.
    """

    hit: Hit
    match: float | None = None

    @property
    def score(self) -> float:
        """What it is ranked by: the cosine, -1 to 1; where it was looked at again, the match is
        added, as in the evaluation of BLIP (Li et al. 2022). The match alone knows nothing of the
        other images, and ranks worse than the cosine alone where texts are longer than it reads.
        """
        return self.hit.score + (self.match or 0.0)


class Searched(NamedTuple):
    """What was found.

    Attributes:
        reduction: of the query, if that is an image; as `schemas.Reduction` describes it.
        rerank: as `gallery_schemas.Reranked` describes it, if there was one.
    """

    found: list[Ranked]
    reduction: dict[str, Any] | None
    rerank: dict[str, Any] | None
    timings_ms: dict[str, float]


async def search(
    core: Core,
    gallery: Gallery,
    model: Model | None,
    query: Query,
    *,
    rerank: Rerank | None = None,
    request: Request | None = None,
) -> Searched:
    """The images that fit best, best first.

    Args:
        model: the gallery's own; None if the query is an id.
        rerank: only of a query that is a text.
        request: whose caller is watched.

    Raises:
        UnknownImage: the gallery has none of that id.
        InvalidFilter: the filter is none.
        ApiError: nothing can be embedded, or ranked again, now.
    """
    begun = time.perf_counter()
    vector, reduction = await _vector(core, gallery, model, query, request)
    embedded = time.perf_counter()
    hits = await _nearest(gallery, vector, query, rerank.candidates if rerank else 0)
    searched = time.perf_counter()
    timings = {"embed": embedded - begun, "search": searched - embedded}
    ranked = [Ranked(hit) for hit in hits]
    told = None
    if rerank is not None:
        assert isinstance(query.sought, str)  # a text
        ranked, told = await _again(core, gallery, ranked, query, rerank, request)
        timings["rerank"] = time.perf_counter() - searched
    return Searched(
        ranked[query.offset : query.offset + query.top_k],
        reduction,
        told,
        {stage: round(seconds * 1000, 3) for stage, seconds in timings.items()},
    )


async def _vector(
    core: Core, gallery: Gallery, model: Model | None, query: Query, request: Request | None
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
        embedded = await embed_text(core, model, query.sought, request=request)
        return embedded.vector, None
    choice = (
        choose(core, model, query.selector)
        if any(value is not None for value in query.selector)
        else own_choice(model, gallery.info)
    )
    (found,) = await embed_images(core, model, [query.sought], choice, request=request)
    if isinstance(found, ApiError):
        raise found
    return found.vector, found.reduction


async def _nearest(
    gallery: Gallery, vector: npt.NDArray[np.float32], query: Query, candidates: int
) -> list[Hit]:
    """From the very best on, as many as are needed."""
    itself = query.by == "id"
    hits = await gallery.search(
        vector,
        top_k=max(query.offset + query.top_k, candidates) + itself,
        filter=query.filter,
        exact=query.exact,
    )
    # Nobody asks which image is most like itself.
    return [hit for hit in hits if not (itself and hit.id == query.sought)]


async def _again(
    core: Core,
    gallery: Gallery,
    ranked: Sequence[Ranked],
    query: Query,
    rerank: Rerank,
    request: Request | None,
) -> tuple[list[Ranked], dict[str, Any] | None]:
    """The best in the order of their new scores; the others after them, as they were.

    Thumbnails are looked at: they are what there is of the images, and as large as the networks
    see. One that was deleted meanwhile, or fails, goes behind those that did not.
    """
    assert isinstance(query.sought, str)
    best = ranked[: rerank.candidates]
    pictures = await gallery.thumbnails([one.hit.id for one in best])
    seen = [one for one in best if one.hit.id in pictures]
    if not seen:
        return list(ranked), None
    matched = await match_scores(
        core,
        rerank.model,
        [pictures[one.hit.id] for one in seen],
        query.sought,
        query.selector,
        request=request,
    )
    scores = {
        one.hit.id: score
        for one, score in zip(seen, matched.scores, strict=True)
        if not isinstance(score, ApiError)
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
