"""POST /v1/embed: images or texts as vectors that can be compared."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fastapi import APIRouter, Request, Response

from tokenfold.service import task
from tokenfold.service.api import body
from tokenfold.service.api.openapi import inference
from tokenfold.service.api.schemas.embed import EmbedRequest, EmbedResponse
from tokenfold.service.core import Core
from tokenfold.service.scheduling.backends.backend import Sample
from tokenfold.service.scheduling.catalog import Model
from tokenfold.service.steps import Item
from tokenfold.service.vectors import vector, written

# What the demo model may answer; its vectors are longer.
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
    **inference(EmbedRequest, "embed", asked={}, example=_EXAMPLE),
)
async def embed(request: Request) -> Response:
    """A vector of length 1 for each image, or for each text: their scalar product is how alike two
    of one model are.

    Texts are not reduced: a level changes nothing of them. One that fails carries its problem in
    its result; the others are answered still. If all fail, the answer is the first one's problem.
    """
    core: Core = request.app.state.core
    with core.metrics.track("embed") as track:
        core.check_room()
        asked = await body.read(request, EmbedRequest)

        def finish(model: Model, outputs: Sequence[Sample]) -> dict[str, Any]:
            (output,) = outputs
            return {"vector": written(vector(model, output), asked.encoding)}

        images = [Item((index,)) for index in range(len(asked.image))]
        return await task.answer(
            core,
            request,
            track,
            task="embed",
            asked=asked,
            pictures=asked.image,
            words=asked.text,
            field="text",
            items=images or [Item((), index) for index in range(len(asked.text))],
            finish=finish,
        )
