"""POST /v1/entail: whether a hypothesis follows from an image."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fastapi import APIRouter, Request, Response

from tokenfold.service import task
from tokenfold.service.api import body
from tokenfold.service.api.openapi import inference
from tokenfold.service.api.schemas.pairs import EntailRequest, EntailResponse, example
from tokenfold.service.core import Core
from tokenfold.service.pairing import one_by_one
from tokenfold.service.scheduling.backends.backend import Sample
from tokenfold.service.scheduling.catalog import Model
from tokenfold.service.scores import scores

# What the demo model may answer.
_ANSWER = {
    "label": "entailment",
    "scores": {"entailment": 0.962113, "neutral": 0.031204, "contradiction": 0.006683},
    "text": {"tokens": 8, "cut": False},
}

router = APIRouter(tags=["inference"], route_class=body.Route)


@router.post(
    "/v1/entail",
    operation_id="entail",
    summary="Does a text follow from an image?",
    response_model=EntailResponse,
    **inference(
        EntailRequest,
        "entail",
        asked={"hypothesis": "There is a red circle."},
        example={"model": "scenes", "results": [example(_ANSWER)]},
    ),
)
async def entail(request: Request) -> Response:
    """Whether each hypothesis follows from its image, contradicts it, or neither.

    One that fails carries its problem in its result; the others are answered still. If all fail,
    the answer is the first one's problem.
    """
    core: Core = request.app.state.core
    with core.metrics.track("entail") as track:
        core.check_room()
        asked = await body.read(request, EntailRequest)

        def finish(model: Model, outputs: Sequence[Sample]) -> dict[str, Any]:
            (output,) = outputs
            found = scores(model, "entail", output["logits"])
            labels = model.labels("entail")
            return {
                "label": labels[int(found.argmax())],
                "scores": {
                    label: round(float(score), 6)
                    for label, score in zip(labels, found, strict=True)
                },
            }

        return await task.answer(
            core,
            request,
            track,
            task="entail",
            asked=asked,
            pictures=asked.image,
            words=asked.hypothesis,
            field="hypothesis",
            items=one_by_one(len(asked.image), len(asked.hypothesis), name="hypothesis"),
            finish=finish,
        )
