"""POST /v1/classify: an image's likeliest classes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fastapi import APIRouter, Request, Response

from service import body, task
from service.backends.backend import Sample
from service.catalog import Model
from service.engine import Engine
from service.openapi import inference
from service.schemas import ClassifyRequest, ClassifyResponse
from service.scores import best
from service.steps import Item

# The demo model's answer to a photo of a frog.
_EXAMPLE = {
    "model": "cifar10",
    "results": [
        {
            "predictions": [
                {"label": "frog", "index": 6, "score": 0.931204},
                {"label": "cat", "index": 3, "score": 0.041778},
            ],
            "reduction": {
                "method": "tome",
                "level": "balanced",
                "requested": 0.4,
                "flops_ratio": 0.601424,
                "tokens_in": 65,
                "tokens_out": 8,
            },
            "batch_size": 1,
            "timings_ms": {"decode": 0.412, "queue": 0.171, "infer": 1.893, "post": 0.062},
        }
    ],
}

router = APIRouter(tags=["inference"], route_class=body.Route)


@router.post(
    "/v1/classify",
    operation_id="classify",
    summary="Classify images",
    response_model=ClassifyResponse,
    **inference(ClassifyRequest, "classify", asked={"top_k": 3}, example=_EXAMPLE),
)
async def classify(request: Request) -> Response:
    """The likeliest classes of each image, with how much was reduced and how long it took.

    An image that fails carries its problem in its result; the others are answered still. If all
    fail, the answer is the first one's problem.
    """
    engine: Engine = request.app.state.engine
    with engine.metrics.track("classify") as track:
        engine.check_room()
        asked = await body.read(request, ClassifyRequest)

        def finish(model: Model, outputs: Sequence[Sample]) -> dict[str, Any]:
            (output,) = outputs
            return {"predictions": best(model, "classify", output["logits"], asked.top_k)}

        return await task.answer(
            engine,
            request,
            track,
            task="classify",
            asked=asked,
            pictures=asked.image,
            items=[Item((index,)) for index in range(len(asked.image))],
            finish=finish,
        )
