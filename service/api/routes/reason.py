"""POST /v1/reason: decide whether a statement is true of two images."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response

from tokenfold.inference.answers import reasoning
from tokenfold.service.api import body
from tokenfold.service.api.answering import Incoming
from tokenfold.service.api.openapi import inference
from tokenfold.service.api.schemas.pairs import ReasonRequest, ReasonResponse, example
from tokenfold.service.core import Core

# A possible answer of the demo model.
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
        fields={"statement": "There are more circles on the left."},
        example={"model": "scenes", "results": [example(_ANSWER, pairs=2)]},
    ),
)
async def reason(request: Request) -> Response:
    """Decide whether each statement is true of its left and right image.

    The result of an item that fails is its problem; the others are answered. If all fail, the
    answer is the problem of the first.
    """
    core: Core = request.app.state.core
    with core.metrics.track("reason") as track:
        core.check_room()
        fields = await body.read(request, ReasonRequest)
        return await Incoming(request, track).respond_about_texts(
            "reason",
            fields,
            fields.image,
            fields.statement,
            reasoning,
            per_item=2,
            text_field="statement",
        )
