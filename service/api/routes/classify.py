"""POST /v1/classify: classify images."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response

from tokenfold.bundle.tasks import Task
from tokenfold.inference.answers import classification, zero_shot
from tokenfold.inference.request import Item
from tokenfold.service.api import body
from tokenfold.service.api.answering import Incoming, check_count
from tokenfold.service.api.openapi import inference
from tokenfold.service.api.schemas.inference import ClassifyRequest, ClassifyResponse
from tokenfold.service.core import Core
from tokenfold.service.zero_shot import LabelEncoder, check_model

# An answer of the demo model to a photo of a frog.
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
    **inference(ClassifyRequest, "classify", "embed", fields={"top_k": 3}, example=_EXAMPLE),
)
async def classify(request: Request) -> Response:
    """Classify each image, by the model's classes or by labels of the request.

    With `labels`, a dual encoder compares each image with the texts of the labels. Texts that are
    not cached are encoded first; `queue` includes that time.

    The result of an item that fails is its problem; the others are answered. If all fail, the
    answer is the problem of the first.
    """
    core: Core = request.app.state.core
    with core.metrics.track("classify") as track:
        core.check_room()
        fields = await body.read(request, ClassifyRequest)
        incoming = Incoming(request, track)
        check_count("images", len(fields.image), core.settings.max_items)
        check_model(core.catalog, fields.model, labels=bool(fields.labels))
        task: Task = "embed" if fields.labels else "classify"
        model = incoming.model(fields.model, task)
        if fields.labels:
            # The level is chosen again later; an invalid one must not cost a thousand texts.
            model.levels.choose(fields.selector, task)
            encoder: LabelEncoder = request.app.state.labels
            texts = await encoder.vectors(
                model, fields.labels, fields.template, disconnect=request.receive
            )
            finish = zero_shot(model, fields.labels, texts, fields.top_k)
        else:
            finish = classification(model, fields.top_k)
        items = [Item((index,)) for index in range(len(fields.image))]
        images = incoming.request(model, task, fields, items, images=fields.image)
        return await incoming.respond(model, images, finish)
