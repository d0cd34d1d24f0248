"""POST /v1/match: scores of every image with every text."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response

from tokenfold.inference.answers import matching
from tokenfold.inference.request import matrix
from tokenfold.service.api import body
from tokenfold.service.api.answering import Incoming
from tokenfold.service.api.openapi import inference
from tokenfold.service.api.schemas.pairs import MatchRequest, MatchResponse, example
from tokenfold.service.core import Core

# A possible answer of the demo model.
_ANSWER = {"scores": [0.978302, 0.013207]}

router = APIRouter(tags=["inference"], route_class=body.Route)


@router.post(
    "/v1/match",
    operation_id="match",
    summary="Match images with texts",
    response_model=MatchResponse,
    **inference(
        MatchRequest,
        "match",
        fields={"text": ["a red circle", "two squares"]},
        example={
            "model": "scenes",
            "texts": [{"tokens": 8, "cut": False}] * 2,
            "results": [example(_ANSWER, pairs=2)],
        },
    ),
)
async def match(request: Request) -> Response:
    """Match every image with every text: a row of scores for each image.

    Each image is embedded once, whatever the number of texts.

    The result of an item that fails is its problem; the others are answered. If all fail, the
    answer is the problem of the first.
    """
    core: Core = request.app.state.core
    with core.metrics.track("match") as track:
        core.check_room()
        fields = await body.read(request, MatchRequest)
        incoming = Incoming(request, track)
        model = incoming.model(fields.model, "match")
        texts = fields.text
        items = matrix(len(fields.image), len(texts), max_pairs=core.settings.max_pairs)
        pairs = incoming.request(model, "match", fields, items, images=fields.image, texts=texts)
        return await incoming.respond(model, pairs, matching(model), row=len(texts))
