"""How well a text fits each of some images, by a network that sees both: for re-ranking."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from starlette.requests import Request

from tokenfold.service import running, texts
from tokenfold.service.core import Core
from tokenfold.service.errors import ApiError
from tokenfold.service.results import reduction, results
from tokenfold.service.scheduling.backends.backend import Sample
from tokenfold.service.scheduling.catalog import Model
from tokenfold.service.scheduling.levels import Selector
from tokenfold.service.scheduling.work import total
from tokenfold.service.scores import yes
from tokenfold.service.steps import Asking, Item


class Matched(NamedTuple):
    """What became of some images and a text.

    Attributes:
        scores: 0 to 1, in the order of the images; an error for one that failed.
        reduction: as `schemas.Reduction` describes it, of all of them together.
        timings_ms: by stage, of all of them together; `queue` is the longest.
    """

    scores: list[float | ApiError]
    reduction: dict[str, Any]
    timings_ms: dict[str, float]


async def match_scores(
    core: Core,
    model: Model,
    pictures: Sequence[bytes | str],
    text: str,
    selector: Selector,
    *,
    request: Request | None = None,
) -> Matched:
    """Scores of images with one text.

    Args:
        model: one that has the task "match".
        pictures: files, or base64 of them; 1 or more, at most as many as may wait in the queue.
        request: whose caller is watched: when it goes away, so does the work.

    Raises:
        ApiError: nothing can be answered: the level, the text, no place in the queue, no caller,
            or every image failed; then it is the first one's.
    """
    arrived = time.perf_counter()
    limit = core.settings.max_pixels
    asking = Asking.of(
        model,
        "match",
        [running.image(data, max_pixels=limit) for data in pictures],
        await texts.encode(model.text, [text], "text"),
        [Item((at,), 0) for at in range(len(pictures))],
    )
    choice = running.choose(core, asking, selector)
    steps = await running.run(core, asking, choice, request=request)
    found = results(core, steps, width=None, arrived=arrived, finish=_finish)
    answered = [one for one in found if not isinstance(one, ApiError)]
    if not answered:
        raise next(one for one in found if isinstance(one, ApiError))
    works = [
        work
        for one, own in zip(found, steps.works, strict=True)
        if not isinstance(one, ApiError)
        for work in own
    ]
    return Matched(
        [one if isinstance(one, ApiError) else one["score"] for one in found],
        reduction(model, choice, total(works)),
        _together([one["timings_ms"] for one in answered]),
    )


def _finish(model: Model, outputs: Sequence[Sample]) -> dict[str, Any]:
    (output,) = outputs
    return {"score": yes(model, "match", output["logits"])}


def _together(timings: Sequence[Mapping[str, float]]) -> dict[str, float]:
    return {
        stage: round((max if stage == "queue" else sum)(one[stage] for one in timings), 3)
        for stage in timings[0]
    }
