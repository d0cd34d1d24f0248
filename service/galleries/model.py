"""A gallery's model and level: chosen when it is created, and looked up later."""

from __future__ import annotations

from datetime import UTC, datetime

from tokenfold.inference.levels import Choice
from tokenfold.service.errors import OtherModel
from tokenfold.service.galleries.record import GalleryInfo
from tokenfold.service.scheduling.catalog import Catalog, ServedModel


def gallery_info(name: str, model: ServedModel, choice: Choice) -> GalleryInfo:
    """Return the description of a new gallery of a dual encoder's vectors."""
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


def gallery_model(catalog: Catalog, info: GalleryInfo, *, named: str | None = None) -> ServedModel:
    """Return the model that made a gallery's vectors.

    Args:
        catalog: the served models.
        info: description of the gallery.
        named: the model that the request names, if any.

    Raises:
        OtherModel: the model is not served, was exported again, or is not the named one. Vectors of
            two networks cannot be compared.
    """
    if named is not None and named != info.model:
        raise OtherModel(
            f"The vectors of {info.name} were made by {info.model}, not by {named!r}. "
            "Create another gallery for that model."
        )
    model = catalog.named(info.model)
    if model is None or "embed" not in model.tasks:
        raise OtherModel(
            f"The vectors of {info.name} were made by {info.model}, which is not served here. The "
            "gallery can be listed, and searched by id."
        )
    if model.manifest.fingerprint != info.fingerprint:
        raise OtherModel(
            f"The vectors of {info.name} were made by another export of {info.model}, with "
            "other weights than the served ones. The gallery can be listed, and searched by id; "
            "create another gallery to search by text or image."
        )
    return model


def gallery_choice(model: ServedModel, info: GalleryInfo) -> Choice:
    """Return the level of a gallery's images, as it was when the gallery was created."""
    plan = tuple(int(count) for count in info.plan)
    return Choice(info.level, plan, info.requested, model.levels.work(plan))
