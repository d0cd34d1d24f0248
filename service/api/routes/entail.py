"""POST /v1/entail: decide whether a hypothesis follows from an image."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response

from tokenfold.inference.answers import entailment
from tokenfold.service.api import body
from tokenfold.service.api.answering import Incoming
from tokenfold.service.api.openapi import inference
from tokenfold.service.api.schemas.pairs import EntailRequest, EntailResponse, example
from tokenfold.service.core import Core

# A possible answer of the demo model.
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
        fields={"hypothesis": "There is a red circle."},
        example={"model": "scenes", "results": [example(_ANSWER)]},
    ),
)
async def entail(request: Request) -> Response:
    """Decide whether each hypothesis follows from its image.

    The result of an item that fails is its problem; the others are answered. If all fail, the
    answer is the problem of the first.
    """
    core: Core = request.app.state.core
    with core.metrics.track("entail") as track:
        core.check_room()
        fields = await body.read(request, EntailRequest)
        return await Incoming(request, track).respond_about_texts(
            "entail",
            fields,
            fields.image,
            fields.hypothesis,
            entailment,
            text_field="hypothesis",
        )
