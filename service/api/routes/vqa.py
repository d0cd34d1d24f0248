"""POST /v1/vqa: answers to questions about images."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fastapi import APIRouter, Request, Response

from tokenfold.service import task
from tokenfold.service.api import body
from tokenfold.service.api.openapi import inference
from tokenfold.service.api.schemas.pairs import VqaRequest, VqaResponse, example
from tokenfold.service.core import Core
from tokenfold.service.pairing import one_by_one
from tokenfold.service.scheduling.backends.backend import Sample
from tokenfold.service.scheduling.catalog import Model
from tokenfold.service.scores import best

# What the demo model may answer.
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
        asked={"question": "What colour is the circle?", "top_k": 2},
        example={"model": "scenes", "results": [example(_ANSWER)]},
    ),
)
async def vqa(request: Request) -> Response:
    """The likeliest answers to each question about an image.

    One that fails carries its problem in its result; the others are answered still. If all fail,
    the answer is the first one's problem.
    """
    core: Core = request.app.state.core
    with core.metrics.track("vqa") as track:
        core.check_room()
        asked = await body.read(request, VqaRequest)

        def finish(model: Model, outputs: Sequence[Sample]) -> dict[str, Any]:
            (output,) = outputs
            logits = output["logits"]
            return {"answers": best(model, "vqa", logits, asked.top_k, name="answer")}

        return await task.answer(
            core,
            request,
            track,
            task="vqa",
            asked=asked,
            pictures=asked.image,
            words=asked.question,
            field="question",
            items=one_by_one(len(asked.image), len(asked.question), name="question"),
            finish=finish,
        )
