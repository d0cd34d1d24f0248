"""POST /v1/entail: whether a hypothesis follows from an image."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fastapi import APIRouter, Request, Response

from service import body, task
from service.backends.backend import Sample
from service.catalog import Model
from service.engine import Engine
from service.openapi import inference
from service.pair_schemas import EntailRequest, EntailResponse, example
from service.pairing import one_by_one
from service.scores import scores

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
    engine: Engine = request.app.state.engine
    with engine.metrics.track("entail") as track:
        engine.check_room()
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
            engine,
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
