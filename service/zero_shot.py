"""Classes that a request names: their texts as vectors, with which those of images are compared."""

from __future__ import annotations

import time
from collections.abc import Sequence

import numpy as np
from starlette.requests import Request

from tokenfold.service import running, texts
from tokenfold.service.core import Core
from tokenfold.service.errors import ApiError, Expired, InvalidRequest
from tokenfold.service.scheduling.catalog import Catalog, Model
from tokenfold.service.scheduling.levels import Selector
from tokenfold.service.steps import Asking, Item
from tokenfold.service.vectors import Vector, Vectors, vector

# Texts that take places in the queue at once: a thousand labels are not to fill it.
_AT_ONCE = 64


def check_model(catalog: Catalog, name: str | None, *, labels: bool) -> None:
    """Whether a request to classify names a model that can: with labels of its own, or without.

    Raises:
        InvalidRequest: it cannot, but would the other way.
    """
    model = None if name is None else catalog.named(name)
    if model is None:
        return
    if labels and "classify" in model.tasks:
        raise InvalidRequest(
            f"{model.name} has classes of its own: leave labels out, or name a dual encoder."
        )
    if not labels and "embed" in model.tasks:
        raise InvalidRequest(
            f"{model.name} has no classes of its own: say with labels which there are."
        )


async def label_vectors(
    core: Core,
    model: Model,
    labels: Sequence[str],
    template: str | None,
    request: Request,
) -> Vectors:
    """The vectors of labels, (labels, width); those that are not remembered are read first.

    Args:
        template: how a label becomes a text, at its `{}`; by default the model's.

    Raises:
        ApiError: a text is empty, or cannot be read now.
    """
    similarity = model.manifest.similarity
    assert similarity is not None  # of every dual encoder
    how = similarity.template if template is None else template
    written = [how.replace("{}", label) for label in labels]
    found = core.labels.get(model.name, written)
    missing = {text: at for at, text in enumerate(written) if text not in found}
    places = list(missing.values())
    deadline = time.perf_counter() + core.settings.request_timeout
    wave = min(_AT_ONCE, core.settings.queue_limit)
    for begin in range(0, len(places), wave):
        some = places[begin : begin + wave]
        encoded = await texts.encode(model.text, [written[at] for at in some], "labels", some)
        asking = Asking.of(model, "embed", (), encoded, [Item((), at) for at in range(len(some))])
        read = await _read(core, asking, request, deadline)
        vectors = dict(zip((written[at] for at in some), read, strict=True))
        core.labels.keep(model.name, vectors)
        found |= vectors
    return np.stack([found[text] for text in written])


async def _read(core: Core, asking: Asking, request: Request, deadline: float) -> list[Vector]:
    choice = asking.model.levels.choose(Selector(), asking.task)  # which no text looks at
    within = deadline - time.perf_counter()
    steps = await running.run(core, asking, choice, request=request, within=within)
    found = []
    for outcome in steps.ticket.outcomes:
        if outcome is None:
            raise Expired(
                f"The labels were not read in {core.settings.request_timeout:g} s. Those that "
                "were are remembered.",
                retry_after=1,
            )
        if isinstance(outcome, ApiError):
            raise outcome
        found.append(vector(asking.model, outcome.output))
    return found
