"""POST /v1/classify: an image's likeliest classes."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from fastapi import APIRouter, Request, Response

from service import body, task
from service.backends.backend import Sample
from service.catalog import Model
from service.engine import Engine
from service.errors import InternalError
from service.openapi import inference
from service.schemas import ClassifyRequest, ClassifyResponse

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
    **inference(ClassifyRequest, example=_EXAMPLE),
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

        def finish(model: Model, output: Sample) -> dict[str, Any]:
            return {"predictions": _predictions(model, output, asked.top_k)}

        limit = engine.settings.max_pixels
        return await task.answer(
            engine,
            request,
            track,
            task="classify",
            asked=asked,
            items=[task.image(data, max_pixels=limit) for data in asked.image],
            finish=finish,
        )


def _predictions(model: Model, output: Sample, top_k: int) -> list[dict[str, Any]]:
    logits = output["logits"]
    shares = np.exp(logits - logits.max(), dtype=np.float64)
    total = float(shares.sum())
    if not math.isfinite(total):
        raise InternalError(f"{model.name} computed no finite numbers for this image.")
    # Stable: equal scores keep the order of their classes.
    best = (-logits).argsort(kind="stable")[:top_k].tolist()
    labels = model.labels
    return [
        {"label": labels[i], "index": i, "score": round(float(shares[i]) / total, 6)} for i in best
    ]
