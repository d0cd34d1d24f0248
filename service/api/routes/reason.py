"""POST /v1/reason: whether a statement is true of two images."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fastapi import APIRouter, Request, Response

from tokenfold.service import task
from tokenfold.service.api import body
from tokenfold.service.api.openapi import inference
from tokenfold.service.api.schemas.pairs import ReasonRequest, ReasonResponse, example
from tokenfold.service.core import Core
from tokenfold.service.pairing import one_by_one
from tokenfold.service.scheduling.backends.backend import Sample
from tokenfold.service.scheduling.catalog import Model
from tokenfold.service.scores import yes

# What the demo model may answer.
_ANSWER = {"answer": True, "score": 0.883471, "text": {"tokens": 8, "cut": False}}

router = APIRouter(tags=["inference"], route_class=body.Route)


@router.post(
    "/v1/reason",
    operation_id="reason",
    summary="Is a text true of two images?",
    response_model=ReasonResponse,
    **inference(
        ReasonRequest,
        "reason",
        asked={"statement": "There are more circles on the left."},
        example={"model": "scenes", "results": [example(_ANSWER, pairs=2)]},
    ),
)
async def reason(request: Request) -> Response:
    """Whether each statement is true of its left and right image.

    One that fails carries its problem in its result; the others are answered still. If all fail,
    the answer is the first one's problem.
    """
    core: Core = request.app.state.core
    with core.metrics.track("reason") as track:
        core.check_room()
        asked = await body.read(request, ReasonRequest)

        def finish(model: Model, outputs: Sequence[Sample]) -> dict[str, Any]:
            (output,) = outputs
            score = yes(model, "reason", output["logits"])
            return {"answer": score >= 0.5, "score": score}

        return await task.answer(
            core,
            request,
            track,
            task="reason",
            asked=asked,
            pictures=asked.image,
            words=asked.statement,
            field="statement",
            items=one_by_one(len(asked.image), len(asked.statement), name="statement", of=2),
            finish=finish,
        )
