"""POST /v1/classify: an image's likeliest classes."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from fastapi import APIRouter, Request, Response

from tokenfold.service import task, zero_shot
from tokenfold.service.api import body
from tokenfold.service.api.openapi import inference
from tokenfold.service.api.schemas.inference import ClassifyRequest, ClassifyResponse
from tokenfold.service.core import Core
from tokenfold.service.metrics import Track
from tokenfold.service.results import Finish
from tokenfold.service.scheduling.backends.backend import Sample
from tokenfold.service.scheduling.catalog import Model
from tokenfold.service.scores import best, closest
from tokenfold.service.steps import Item
from tokenfold.service.vectors import vector

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
    **inference(ClassifyRequest, "classify", "embed", asked={"top_k": 3}, example=_EXAMPLE),
)
async def classify(request: Request) -> Response:
    """The likeliest classes of each image, with how much was reduced and how long it took.

    With `labels` a dual encoder compares each image with their texts; those it has not read lately
    are read first, and `queue` tells how long that took.

    An image that fails carries its problem in its result; the others are answered still. If all
    fail, the answer is the first one's problem.
    """
    core: Core = request.app.state.core
    with core.metrics.track("classify") as track:
        core.check_room()
        asked = await body.read(request, ClassifyRequest)
        arrived = time.perf_counter()
        task.check_count(core, "images", len(asked.image))
        zero_shot.check_model(core.catalog, asked.model, labels=bool(asked.labels))
        finish = await _zero_shot(core, request, track, asked) if asked.labels else _own(asked)
        return await task.answer(
            core,
            request,
            track,
            task="embed" if asked.labels else "classify",
            asked=asked,
            pictures=asked.image,
            items=[Item((index,)) for index in range(len(asked.image))],
            finish=finish,
            arrived=arrived,
        )


def _own(asked: ClassifyRequest) -> Finish:
    """By the model's classes."""

    def finish(model: Model, outputs: Sequence[Sample]) -> dict[str, Any]:
        (output,) = outputs
        return {"predictions": best(model, "classify", output["logits"], asked.top_k)}

    return finish


async def _zero_shot(core: Core, request: Request, track: Track, asked: ClassifyRequest) -> Finish:
    """By the classes that the request names."""
    model = core.catalog.find(asked.model, "embed")
    track.model = model.name
    # Chosen again once they are read: here only to refuse before a thousand texts are.
    model.levels.choose(asked.selector, "embed")
    texts = await zero_shot.label_vectors(core, model, asked.labels, asked.template, request)

    def finish(model: Model, outputs: Sequence[Sample]) -> dict[str, Any]:
        (output,) = outputs
        image = vector(model, output)
        return {"predictions": closest(model, image, texts, asked.labels, asked.top_k)}

    return finish
