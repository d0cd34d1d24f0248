"""POST /v1/vqa: answer questions about images."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response

from tokenfold.inference.answers import question_answers
from tokenfold.service.api import body
from tokenfold.service.api.answering import Incoming
from tokenfold.service.api.openapi import inference
from tokenfold.service.api.schemas.pairs import VqaRequest, VqaResponse, example
from tokenfold.service.core import Core

# A possible answer of the demo model.
_ANSWER = {
    "answers": [
        {"answer": "blue", "index": 1, "score": 0.947218},
        {"answer": "green", "index": 3, "score": 0.021093},
    ],
    "text": {"tokens": 8, "cut": False},
}

router = APIRouter(tags=["inference"], route_class=body.Route)


@router.post(
    "/v1/vqa",
    operation_id="answerQuestions",
    summary="Answer questions about images",
    response_model=VqaResponse,
    **inference(
        VqaRequest,
        "vqa",
        fields={"question": "What colour is the circle?", "top_k": 2},
        example={"model": "scenes", "results": [example(_ANSWER)]},
    ),
)
async def vqa(request: Request) -> Response:
    """Answer each question about an image.

    The result of an item that fails is its problem; the others are answered. If all fail, the
    answer is the problem of the first.
    """
    core: Core = request.app.state.core
    with core.metrics.track("vqa") as track:
        core.check_room()
        fields = await body.read(request, VqaRequest)
        return await Incoming(request, track).respond_about_texts(
            "vqa",
            fields,
            fields.image,
            fields.question,
            lambda model: question_answers(model, fields.top_k),
            text_field="question",
        )
