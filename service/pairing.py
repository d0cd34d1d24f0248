"""Which image goes with which text."""

from __future__ import annotations

from tokenfold.service.errors import InvalidRequest
from tokenfold.service.steps import Item


def one_by_one(images: int, texts: int, *, name: str, of: int = 1) -> list[Item]:
    """As many images as texts, each with its own; or one for all of the others.

    Args:
        images, texts: how many there are, 1 or more.
        name: of the texts, in an error.
        of: images that each item looks at, one after the other among the images.

    Raises:
        InvalidRequest: they do not pair.
    """
    groups, rest = divmod(images, of)
    if rest or not (groups == texts or 1 in (groups, texts)):
        one = "one image" if of == 1 else f"{of} images"
        each = "as many of both" if of == 1 else f"{of} images for each {name}"
        raise InvalidRequest(
            f"There are {images} of image and {texts} of {name}: send {each}, or one {name} for "
            f"all images, or {one} for every {name}."
        )
    looked = [tuple(range(at * of, at * of + of)) for at in range(groups)]
    return [
        Item(looked[at if groups > 1 else 0], at if texts > 1 else 0)
        for at in range(max(groups, texts))
    ]


def matrix(images: int, texts: int, *, most: int) -> list[Item]:
    """Every image with every text, row by row.

    Raises:
        InvalidRequest: there are more than `most`.
    """
    if images * texts > most:
        raise InvalidRequest(
            f"{images} images with {texts} texts are {images * texts} pairs; a request has at "
            f"most {most}."
        )
    return [Item((image,), text) for image in range(images) for text in range(texts)]
