"""POST /v1/match: how well each of some texts fits each of some images."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fastapi import APIRouter, Request, Response

from tokenfold.service import task
from tokenfold.service.api import body
from tokenfold.service.api.openapi import inference
from tokenfold.service.api.schemas.pairs import MatchRequest, MatchResponse, example
from tokenfold.service.core import Core
from tokenfold.service.pairing import matrix
from tokenfold.service.scheduling.backends.backend import Sample
from tokenfold.service.scheduling.catalog import Model
from tokenfold.service.scores import yes

# What the demo model may answer.
_ANSWER = {"scores": [0.978302, 0.013207]}

router = APIRouter(tags=["inference"], route_class=body.Route)


@router.post(
    "/v1/match",
    operation_id="match",
    summary="Match images with texts",
    response_model=MatchResponse,
    **inference(
        MatchRequest,
        "match",
        asked={"text": ["a red circle", "two squares"]},
        example={
            "model": "scenes",
            "texts": [{"tokens": 8, "cut": False}] * 2,
            "results": [example(_ANSWER, pairs=2)],
        },
    ),
)
async def match(request: Request) -> Response:
    """A matrix of scores: a row for each image, in it a score for each text.

    Each image is embedded once, whatever the number of texts. One that fails carries its problem in
    its row; the others are answered still. If all fail, the answer is the first one's problem.
    """
    core: Core = request.app.state.core
    with core.metrics.track("match") as track:
        core.check_room()
        asked = await body.read(request, MatchRequest)
        most = core.settings.max_pairs
        items = matrix(len(asked.image), len(asked.text), most=most)

        def finish(model: Model, outputs: Sequence[Sample]) -> dict[str, Any]:
            return {"scores": [yes(model, "match", output["logits"]) for output in outputs]}

        return await task.answer(
            core,
            request,
            track,
            task="match",
            asked=asked,
            pictures=asked.image,
            words=asked.text,
            field="text",
            items=items,
            finish=finish,
            width=len(asked.text),
        )
