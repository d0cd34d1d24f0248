"""What a request is answered: its results, as `schemas.Result` and those below it describe them.

Built by hand: models of them would be checked, and written, at three times the cost of a dict.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from starlette.responses import Response

from tokenfold.service.core import Core
from tokenfold.service.errors import ApiError, Expired, ItemProblem, problem_response
from tokenfold.service.metrics import Stage, Track
from tokenfold.service.scheduling.backends.backend import Sample
from tokenfold.service.scheduling.catalog import Model
from tokenfold.service.scheduling.levels import Choice
from tokenfold.service.scheduling.scheduler import Done
from tokenfold.service.scheduling.work import Work, total
from tokenfold.service.steps import Steps
from tokenfold.service.texts import describe

# The task's own fields of a result, from the outputs of its items.
Finish = Callable[[Model, Sequence[Sample]], dict[str, Any]]

Found = dict[str, Any] | ApiError


def results(
    core: Core, steps: Steps, *, width: int | None, arrived: float, finish: Finish
) -> list[Found]:
    """Every result of a request.

    Args:
        width: items of a result, in a matrix; None where each item is a result by itself.
        arrived: when the request did, in seconds of perf_counter.
    """
    items = len(steps.asking.items)
    return [
        _result(core, steps, range(at, at + (width or 1)), width is None, arrived, finish)
        for at in range(0, items, width or 1)
    ]


def _result(
    core: Core, steps: Steps, items: range, single: bool, arrived: float, finish: Finish
) -> Found:
    begun = time.perf_counter()
    runs: list[Done] = []
    for index in items:
        outcome = steps.ticket.outcomes[index]
        if outcome is None:
            return Expired(
                f"The answer was not there after {core.settings.request_timeout:g} s.",
                retry_after=max(1, math.ceil(core.scheduler.wait)),
            )
        if isinstance(outcome, ApiError):
            return outcome
        runs.append(outcome)
    asking = steps.asking
    try:
        result = finish(asking.model, [run.output for run in runs])
    except ApiError as error:
        return error
    text = asking.items[items[0]].text
    if single and text is not None:
        result["text"] = describe(asking.texts[text], pieces=steps.slots)
    if asking.images:  # texts by themselves are not reduced
        works = total([work for index in items for work in steps.works[index]])
        result["reduction"] = reduction(asking.model, steps.choice, works)
        if steps.slots:
            _add_slots(result, steps, items, runs, single)
    result["batch_size"] = max(run.batch_size for run in runs)
    seconds = _seconds(steps, items, runs, arrived)
    seconds["post"] = time.perf_counter() - begun
    core.metrics.stages(asking.task, seconds)
    result["timings_ms"] = {stage: round(value * 1000, 3) for stage, value in seconds.items()}
    return result


def reduction(model: Model, choice: Choice, work: Work) -> dict[str, Any]:
    """As `schemas.Reduction` describes it."""
    return {
        "method": model.manifest.workload.method,
        "level": choice.level,
        "requested": choice.requested,
        "flops_ratio": round(work.ratio, 6),
        "tokens_in": work.tokens_in,
        "tokens_out": work.tokens_out,
    }


def _add_slots(
    result: dict[str, Any], steps: Steps, items: range, runs: Sequence[Done], single: bool
) -> None:
    model, asked = steps.asking.model, steps.asking.items
    if not steps.asking.texts:
        result["slots"] = runs[0].output["slots"].tolist()
        result["grid"] = model.grid
        result["protected"] = model.protected
        return
    found = [
        [
            _view(
                model,
                run.output[which + "text_slots"].tolist(),
                run.output[which + "image_slots"].tolist(),
                steps.shapes[image],
            )
            for which, image in zip(("", "second_"), asked[index].images, strict=False)
        ]
        for index, run in zip(items, runs, strict=True)
    ]
    # In a matrix each item has one image: a list by text. Otherwise a list by image.
    result["slots"] = found[0] if single else [views[0] for views in found]


def _view(
    model: Model, text: list[int], image: list[int], shape: tuple[int, int]
) -> dict[str, Any]:
    found: dict[str, Any] = {"text_slots": text, "image_slots": image}
    rows, columns = model.grid_of(shape)
    if len(image) == model.protected + rows * columns:  # else the image's own tower has merged some
        found["grid"] = (rows, columns)
    found["protected"] = model.protected
    return found


def _seconds(
    steps: Steps, items: range, runs: Sequence[Done], arrived: float
) -> dict[Stage, float]:
    images = dict.fromkeys(image for index in items for image in steps.asking.items[index].images)
    decode = sum(steps.decoded[image][1] - steps.decoded[image][0] for image in images)
    infer = sum(run.ran for run in runs)
    for image in images:
        embedding = steps.embedding(image)
        if isinstance(embedding, Done):
            infer += embedding.ran
    # Several runs, or decoders, may have been at it at once: then nothing may be left.
    queue = max(run.ended for run in runs) - arrived - decode - infer
    return {"decode": decode, "queue": max(0.0, queue), "infer": infer}


def respond(
    model: Model, found: Sequence[Found], track: Track, extra: Mapping[str, Any]
) -> Response:
    """The answer to a request.

    Args:
        extra: fields beside the results.

    Raises:
        ApiError: of the only item, if it failed.
    """
    refused = refusal(found, track)
    if refused is not None:
        return refused
    answered = [one for one in found if not isinstance(one, ApiError)]
    return Response(
        json.dumps({"model": model.name, **extra, "results": listed(found)}, separators=(",", ":")),
        media_type="application/json",
        headers={"server-timing": _server_timing(answered)},
    )


def refusal(found: Sequence[Found], track: Track) -> Response | None:
    """The answer to a request of which every item failed; None if one did not.

    Args:
        track: is told the outcome of a request of which some items failed.

    Raises:
        ApiError: of the only item.
    """
    failed = [one for one in found if isinstance(one, ApiError)]
    if len(failed) < len(found):
        if failed:
            track.outcome = "partial"
        return None
    first = failed[0]
    if len(failed) == 1:
        raise first
    track.outcome = first.outcome
    problem = first.problem()
    problem.results = [ItemProblem(problem=one.problem()) for one in failed]
    return problem_response(problem, first.headers())


def listed(found: Sequence[Found]) -> list[dict[str, Any]]:
    """The results of a request, with the problem of each item that failed in its place."""
    return [
        {"problem": one.problem().model_dump(exclude_none=True)}
        if isinstance(one, ApiError)
        else one
        for one in found
    ]


def _server_timing(results: Sequence[Mapping[str, Any]]) -> str:
    """The slowest item of each stage, and the largest batch."""
    slowest: dict[str, float] = {}
    for result in results:
        for stage, value in result["timings_ms"].items():
            slowest[stage] = max(value, slowest.get(stage, 0.0))
    stages = ", ".join(f"{stage};dur={value:g}" for stage, value in slowest.items())
    return f'{stages}, batch;desc="{max(result["batch_size"] for result in results)}"'
