"""POST /v1/galleries/{name}/search: search by text, by image, or by the id of an image."""

from __future__ import annotations

import json
import time
from typing import Any

from fastapi import APIRouter, Request, Response

from tokenfold.inference.errors import InvalidRequest
from tokenfold.service.api import body
from tokenfold.service.api.openapi import accepting
from tokenfold.service.api.routes.galleries import GalleryName, opened, path_of
from tokenfold.service.api.schemas.galleries import SearchRequest, SearchResponse
from tokenfold.service.core import Core
from tokenfold.service.galleries.inference import GalleryInference
from tokenfold.service.galleries.metrics import QueryKind
from tokenfold.service.galleries.model import gallery_model
from tokenfold.service.galleries.search import Query, Ranked, Rerank, search
from tokenfold.service.galleries.table import Gallery

router = APIRouter(tags=["galleries"])

_EXAMPLE = {
    "gallery": "holiday",
    "model": "scenes-retrieval",
    "results": [
        {
            "id": "beach-1",
            "score": 1.394389,
            "similarity": 0.412983,
            "match": 0.981406,
            "metadata": {"album": "2024", "stars": 4},
            "width": 4000,
            "height": 3000,
            "added": "2026-01-31T12:00:00Z",
            "thumbnail": "/v1/galleries/holiday/images/beach-1/thumbnail",
        }
    ],
    "rerank": {
        "model": "scenes",
        "candidates": 1,
        "reduction": {
            "method": "pumer",
            "level": "balanced",
            "requested": 0.4,
            "flops_ratio": 0.602813,
            "tokens_in": 153,
            "tokens_out": 43,
        },
    },
    "timings_ms": {"embed": 1.904, "search": 3.512, "rerank": 6.127},
}


@router.post(
    "/v1/galleries/{name}/search",
    operation_id="searchGallery",
    summary="Search a gallery",
    response_model=SearchResponse,
    **accepting(
        SearchRequest,
        fields={"text": "two dogs on a beach", "top_k": 10, "rerank": 50},
        example=_EXAMPLE,
        statuses=(404, 409, 413, 500),
    ),
)
async def search_gallery(request: Request, name: GalleryName) -> Response:
    """Search the images that fit a text best, or that are most similar to an image.

    With `rerank`, a network that reads image and text together re-ranks the best results, which is
    slower and more accurate. `offset` counts in the final order.
    """
    core: Core = request.app.state.core
    with core.metrics.track("gallery-search") as track:
        core.check_room()
        fields = await body.read(request, SearchRequest)
        begun = time.perf_counter()
        fields.selector.check()
        kind, value = _query(fields)
        rerank = _rerank(core, fields)
        gallery = await opened(request, name)
        track.model = gallery.info.model
        # The vector of a stored image is known: no model is needed.
        model = None
        if kind != "id" or fields.model is not None:
            model = gallery_model(core.catalog, gallery.info, named=fields.model)
        query = Query(
            kind, value, fields.selector, fields.top_k, fields.offset, fields.filter, fields.exact
        )
        inference = GalleryInference(core.dispatcher, disconnect=request.receive)
        searched = await search(inference, gallery, model, query, rerank=rerank)
        request.app.state.keeper.metrics.searched(kind, time.perf_counter() - begun)
        track.level = (searched.reduction or {}).get("level", track.level)
        answer: dict[str, Any] = {
            "gallery": gallery.info.name,
            "model": gallery.info.model,
            "results": [_shown(gallery, result) for result in searched.results],
        }
        if searched.reduction is not None:
            answer["reduction"] = searched.reduction
        if searched.rerank is not None:
            answer["rerank"] = searched.rerank
        answer["timings_ms"] = searched.timings_ms
        stages = ", ".join(f"{stage};dur={ms:g}" for stage, ms in searched.timings_ms.items())
        return Response(
            json.dumps(answer, separators=(",", ":")),
            media_type="application/json",
            headers={"server-timing": stages},
        )


def _query(fields: SearchRequest) -> tuple[QueryKind, bytes | str]:
    """Return the kind of the query, and the query.

    Raises:
        InvalidRequest: there is no query, or more than one.
    """
    queries: list[tuple[QueryKind, bytes | str]] = []
    if fields.text is not None:
        queries.append(("text", fields.text))
    if fields.image:
        queries.append(("image", fields.image[0]))
    if fields.id is not None:
        queries.append(("id", fields.id))
    if len(queries) != 1:
        kinds = " and ".join(kind for kind, _ in queries) or "nothing"
        raise InvalidRequest(f"Search by one of text, image and id, not by {kinds}.")
    return queries[0]


def _rerank(core: Core, fields: SearchRequest) -> Rerank | None:
    """Return the options of the re-ranking; None if none is requested.

    Raises:
        InvalidRequest: there are too many candidates, or the query is no text.
        UnknownModel: no model can re-rank.
    """
    if fields.rerank is None:
        return None
    if fields.text is None:
        raise InvalidRequest("rerank needs a text query.")
    limit = core.settings.max_rerank
    if fields.rerank > limit:
        raise InvalidRequest(f"rerank may be at most {limit}, not {fields.rerank}.")
    return Rerank(core.catalog.find(fields.rerank_model, "match"), fields.rerank)


def _shown(gallery: Gallery, result: Ranked) -> dict[str, Any]:
    hit = result.hit
    shown: dict[str, Any] = {"id": hit.id, "score": round(result.score, 6)}
    if result.match is not None:
        shown["similarity"] = round(hit.score, 6)
        shown["match"] = round(result.match, 6)
    return shown | {
        "metadata": hit.metadata,
        "width": hit.width,
        "height": hit.height,
        "added": hit.added.isoformat(),
        "thumbnail": path_of(gallery.info.name, hit.id) + "/thumbnail",
    }
