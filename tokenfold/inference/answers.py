"""Answers: the fields of a result, as the API returns them.

They are built as plain dicts: building and serialising pydantic models would take three times as
long.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

from tokenfold.inference.backend import Sample, Shape
from tokenfold.inference.errors import RequestError
from tokenfold.inference.levels import Choice
from tokenfold.inference.model import Model
from tokenfold.inference.outputs import (
    Encoding,
    Vectors,
    best,
    closest,
    positive,
    scores,
    vector,
    written,
)
from tokenfold.inference.request import Item, ItemResult, Request, Result, Stage
from tokenfold.inference.texts import describe
from tokenfold.inference.work import Work, total

Answer = dict[str, Any]
Finish = Callable[[Sequence[Sample]], Answer]
"""Turns the outputs of an answer's items into the fields of its task."""


def answer(
    model: Model,
    request: Request,
    result: Result,
    indices: range,
    finish: Finish,
) -> Answer | RequestError:
    """Return one answer of a request, or the error of its first item that failed.

    Args:
        model: the model.
        request: the request.
        result: its result.
        indices: of the answer's items: one, or those of a row of a matrix.
        finish: makes the fields of the task.
    """
    begun = time.perf_counter()
    items: list[tuple[Item, ItemResult]] = []
    for index in indices:
        outcome = result.items[index]
        if isinstance(outcome, RequestError):
            return outcome
        items.append((request.items[index], outcome))
    try:
        fields = finish([outcome.output for _, outcome in items])
    except RequestError as error:
        return error
    fields |= _shared_fields(model, request, result, items)
    fields["batch_size"] = max(outcome.batch_size for _, outcome in items)
    seconds = _seconds(request, items)
    seconds["post"] = time.perf_counter() - begun
    fields["timings_ms"] = {stage: round(value * 1000, 3) for stage, value in seconds.items()}
    return fields


def answers(
    model: Model, request: Request, result: Result, finish: Finish, *, row: int = 1
) -> list[Answer | RequestError]:
    """Return every answer of a request.

    Args:
        model: the model.
        request: the request.
        result: its result.
        finish: makes the fields of the task.
        row: items of an answer: 1, or the texts of a matrix.
    """
    starts = range(0, len(request.items), row)
    return [answer(model, request, result, range(i, i + row), finish) for i in starts]


def reduction(model: Model, choice: Choice, work: Work) -> Answer:
    """Return the level that was used, and its cost."""
    return {
        "method": model.manifest.workload.method,
        "level": choice.level,
        "requested": choice.requested,
        "flops_ratio": round(work.ratio, 6),
        "tokens_in": work.tokens_in,
        "tokens_out": work.tokens_out,
    }


def classification(model: Model, top_k: int) -> Finish:
    """Return the finish of `classify`: the labels of the highest scores."""

    def finish(outputs: Sequence[Sample]) -> Answer:
        (output,) = outputs
        return {"predictions": best(model, "classify", output["logits"], top_k)}

    return finish


def zero_shot(model: Model, labels: Sequence[str], texts: Vectors, top_k: int) -> Finish:
    """Return the finish of `classify` with labels of the request, given their vectors."""

    def finish(outputs: Sequence[Sample]) -> Answer:
        (output,) = outputs
        return {"predictions": closest(model, vector(model, output), texts, labels, top_k)}

    return finish


def question_answers(model: Model, top_k: int) -> Finish:
    """Return the finish of `vqa`: the answers of the highest scores."""

    def finish(outputs: Sequence[Sample]) -> Answer:
        (output,) = outputs
        return {"answers": best(model, "vqa", output["logits"], top_k, name="answer")}

    return finish


def entailment(model: Model) -> Finish:
    """Return the finish of `entail`: the most probable label, and the score of each."""

    def finish(outputs: Sequence[Sample]) -> Answer:
        (output,) = outputs
        values = scores(model, "entail", output["logits"])
        labels = model.labels("entail")
        rounded = [round(float(value), 6) for value in values]
        return {
            "label": labels[int(values.argmax())],
            "scores": dict(zip(labels, rounded, strict=True)),
        }

    return finish


def reasoning(model: Model) -> Finish:
    """Return the finish of `reason`: whether the statement is true, and the score of that."""

    def finish(outputs: Sequence[Sample]) -> Answer:
        (output,) = outputs
        score = positive(model, "reason", output["logits"])
        return {"answer": score >= 0.5, "score": score}

    return finish


def matching(model: Model) -> Finish:
    """Return the finish of `match`: a row of scores, one for each text."""

    def finish(outputs: Sequence[Sample]) -> Answer:
        return {"scores": [positive(model, "match", output["logits"]) for output in outputs]}

    return finish


def embedding(model: Model, encoding: Encoding) -> Finish:
    """Return the finish of `embed`: the vector, for JSON."""

    def finish(outputs: Sequence[Sample]) -> Answer:
        (output,) = outputs
        return {"vector": written(vector(model, output), encoding)}

    return finish


def _shared_fields(
    model: Model, request: Request, result: Result, items: Sequence[tuple[Item, ItemResult]]
) -> Answer:
    """Return the fields that the answers of every task share.

    They are `text` for an answer about one text, `reduction` for one about images, and the fields
    of the slots if the request asked for them.
    """
    item, _ = items[0]
    row = request.task == "match"
    fields: Answer = {}
    if item.text is not None and not row:
        fields["text"] = describe(result.texts[item.text], pieces=request.slots)
    if item.images:  # texts by themselves are not reduced
        work = total([work for _, outcome in items for work in outcome.works])
        fields["reduction"] = reduction(model, result.choice, work)
        if request.slots:
            fields |= _slots(model, result, items, row)
    return fields


def _slots(
    model: Model, result: Result, items: Sequence[tuple[Item, ItemResult]], row: bool
) -> Answer:
    if not result.texts:
        (_, outcome) = items[0]
        return {
            "slots": outcome.output["slots"].tolist(),
            "grid": model.grid,
            "protected": model.protected,
        }
    views = [
        [
            _view(
                model,
                outcome.output[prefix + "text_slots"].tolist(),
                outcome.output[prefix + "image_slots"].tolist(),
                shape,
            )
            for prefix, shape in zip(("", "second_"), outcome.shapes, strict=False)
        ]
        for _, outcome in items
    ]
    # In a matrix each item has one image: a list by text. Otherwise a list by image.
    return {"slots": [images[0] for images in views] if row else views[0]}


def _view(model: Model, text: list[int], image: list[int], shape: Shape) -> Answer:
    view: Answer = {"text_slots": text, "image_slots": image}
    rows, columns = model.grid_of(shape)
    # METER's image tower may have merged tokens already: then they are no grid of patches.
    if len(image) == model.protected + rows * columns:
        view["grid"] = (rows, columns)
    view["protected"] = model.protected
    return view


def _seconds(request: Request, items: Sequence[tuple[Item, ItemResult]]) -> dict[Stage, float]:
    """Return the time spent in each stage but the last. The items of a row share their image."""
    (_, first) = items[0]
    infer = first.embed_seconds + sum(outcome.run_seconds for _, outcome in items)
    ended = max(outcome.ended for _, outcome in items)
    # Nothing may be left for the queue where several runs or decoders worked at the same time.
    queue = max(0.0, ended - request.arrived - first.decode_seconds - infer)
    return {"decode": first.decode_seconds, "queue": queue, "infer": infer}
