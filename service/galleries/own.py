"""A gallery's model and level: chosen once, and found again among those that are served."""

from __future__ import annotations

from datetime import UTC, datetime

from tokenfold.service.errors import OtherModel
from tokenfold.service.galleries.record import GalleryInfo
from tokenfold.service.scheduling.catalog import Catalog, Model
from tokenfold.service.scheduling.levels import Choice


def described(name: str, model: Model, choice: Choice) -> GalleryInfo:
    """A new gallery of a dual encoder's vectors, made as is chosen now."""
    assert model.manifest.similarity is not None  # a dual encoder has one
    return GalleryInfo(
        name=name,
        model=model.name,
        fingerprint=model.manifest.fingerprint,
        level=choice.level,
        requested=choice.requested,
        plan=choice.plan,
        width=model.manifest.similarity.width,
        created=datetime.now(UTC),
    )


def own_model(catalog: Catalog, info: GalleryInfo, *, asked: str | None = None) -> Model:
    """The model that made a gallery's vectors.

    Args:
        asked: the model that a request names, if it does.

    Raises:
        OtherModel: it is not served, or was exported anew, or the request names another: vectors
            of two networks have nothing to do with each other.
    """
    if asked is not None and asked != info.model:
        raise OtherModel(
            f"The vectors of {info.name} are those of {info.model}: {asked!r} has no part in it. "
            f"Create another gallery for that model."
        )
    model = catalog.named(info.model)
    if model is None or "embed" not in model.tasks:
        raise OtherModel(
            f"The vectors of {info.name} are those of {info.model}, which is not served here. It "
            f"can be listed, and searched by id."
        )
    if model.manifest.fingerprint != info.fingerprint:
        raise OtherModel(
            f"The vectors of {info.name} are those of another export of {info.model}: its weights "
            f"differ from the served ones. It can be listed, and searched by id; for text and "
            f"images create another gallery."
        )
    return model


def own_choice(model: Model, info: GalleryInfo) -> Choice:
    """The level that a gallery's images are embedded at, as it was when the gallery was made."""
    plan = tuple(int(count) for count in info.plan)
    return Choice(info.level, plan, info.requested, model.levels.work(plan))
