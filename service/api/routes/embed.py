"""POST /v1/embed: embed images or texts."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response

from tokenfold.inference.answers import embedding
from tokenfold.inference.request import Item
from tokenfold.service.api import body
from tokenfold.service.api.answering import Incoming
from tokenfold.service.api.openapi import inference
from tokenfold.service.api.schemas.embed import EmbedRequest, EmbedResponse
from tokenfold.service.core import Core

# A possible answer of the demo model, whose vectors are longer.
_EXAMPLE = {
    "model": "scenes-retrieval",
    "results": [
        {
            "vector": [0.031287301, -0.117304564, 0.082911],
            "reduction": {
                "method": "tome",
                "level": "balanced",
                "requested": 0.4,
                "flops_ratio": 0.6,
                "tokens_in": 145,
                "tokens_out": 20,
            },
            "batch_size": 1,
            "timings_ms": {"decode": 0.731, "queue": 0.204, "infer": 3.912, "post": 0.058},
        }
    ],
}

router = APIRouter(tags=["inference"], route_class=body.Route)


@router.post(
    "/v1/embed",
    operation_id="embed",
    summary="Make vectors of images or texts",
    response_model=EmbedResponse,
    **inference(EmbedRequest, "embed", fields={}, example=_EXAMPLE),
)
async def embed(request: Request) -> Response:
    """Embed images or texts. The scalar product of two vectors of a model is their similarity.

    Vectors have length 1. Texts are not reduced, so the level does not matter for them.

    The result of an item that fails is its problem; the others are answered. If all fail, the
    answer is the problem of the first.
    """
    core: Core = request.app.state.core
    with core.metrics.track("embed") as track:
        core.check_room()
        fields = await body.read(request, EmbedRequest)
        incoming = Incoming(request, track)
        model = incoming.model(fields.model, "embed")
        images = [Item((index,)) for index in range(len(fields.image))]
        items = images or [Item((), index) for index in range(len(fields.text))]
        inputs = incoming.request(
            model, "embed", fields, items, images=fields.image, texts=fields.text
        )
        return await incoming.respond(model, inputs, embedding(model, fields.encoding))
