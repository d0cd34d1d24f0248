"""Predictor: inference on one bundle from Python, without a server.

The results are those of the server's routes, as plain dicts; see docs/python-api.md.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from os import PathLike
from pathlib import Path
from typing import Self, TypedDict, Unpack, cast

import numpy as np
from PIL import Image

from tokenfold.bundle.bundle import Bundle
from tokenfold.bundle.tasks import Task
from tokenfold.inference import answers, sessions
from tokenfold.inference.answers import Answer, Finish
from tokenfold.inference.errors import InvalidRequest
from tokenfold.inference.images import ImageLike, encoded
from tokenfold.inference.levels import Selector
from tokenfold.inference.model import Model
from tokenfold.inference.outputs import Vectors, label_texts, vector
from tokenfold.inference.request import Item, Request, all_succeeded, matrix, one_by_one
from tokenfold.inference.runner import Runner
from tokenfold.inference.texts import readable
from tokenfold.runtime.cuda import session
from tokenfold.runtime.graph import Device
from tokenfold.runtime.tensorrt import runtime

ImagePair = tuple[ImageLike, ImageLike]
"""The left and the right image of a pair."""

_MAX_DECODED = 64  # images that are decoded before any is run: it bounds the memory of long lists


class Options(TypedDict, total=False):
    """Options of every method of `Predictor`.

    Attributes:
        level: name of a level.
        reduction: fraction of the FLOPs to remove, 0 to 1.
        min_accuracy: measured quality that the level must reach, 0 to 1.
        slots: whether the results include the final position of each token.
    """

    level: str
    reduction: float
    min_accuracy: float
    slots: bool


class Predictor:
    """A bundle that is loaded to be used from Python.

    It is safe to use from several threads. Errors are `tokenfold.inference.errors.RequestError`.

    Attributes:
        model: the bundle's model, with its levels and tasks.
    """

    def __init__(self, bundle: Bundle, *, device: Device = "cpu") -> None:
        """Load a bundle.

        Args:
            bundle: the bundle.
            device: the device that runs it.

        Raises:
            BundleError: the tokenizer cannot be read.
            RuntimeError: the device is not available.
        """
        self.model = Model(bundle)
        self.model.open_text()
        self._runner = Runner(self.model, sessions.load(bundle, device))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Release the model. Later calls fail."""
        self._runner.close()

    def classify(
        self,
        images: ImageLike | Sequence[ImageLike],
        *,
        labels: Sequence[str] | None = None,
        template: str | None = None,
        top_k: int = 5,
        **options: Unpack[Options],
    ) -> list[Answer]:
        """Classify images.

        Args:
            images: an image or several.
            labels: classes, for a dual encoder; by default those of the model.
            template: text of a label, which replaces `{}`; by default the model's.
            top_k: number of predictions of each image.
            options: see `Options`.

        Returns:
            A result for each image, as of `POST /v1/classify`.
        """
        task: Task = "classify" if labels is None else "embed"
        self._check(task)
        _check_top_k(top_k)
        if labels is None:
            finish = answers.classification(self.model, top_k)
        else:
            texts = self._label_vectors(labels, template)
            finish = answers.zero_shot(self.model, labels, texts, top_k)
        return self._each_image(task, images, finish, options)

    def embed(
        self,
        *,
        images: ImageLike | Sequence[ImageLike] | None = None,
        texts: str | Sequence[str] | None = None,
        **options: Unpack[Options],
    ) -> list[Answer]:
        """Embed images or texts with a dual encoder.

        Args:
            images: an image or several; or None.
            texts: a text or several; or None.
            options: see `Options`.

        Returns:
            A result for each image or text, as of `POST /v1/embed`.

        Raises:
            InvalidRequest: both or neither of images and texts are given.
        """
        self._check("embed")
        finish = answers.embedding(self.model, "float")
        if (images is None) == (texts is None):
            raise InvalidRequest("Pass either images or texts.")
        if images is not None:
            return self._each_image("embed", images, finish, options)
        assert texts is not None  # or images are given
        listed = _texts(texts)
        items = [Item((), index) for index in range(len(listed))]
        return self._answers("embed", [], listed, items, finish, options)

    def answer(
        self,
        images: ImageLike | Sequence[ImageLike],
        questions: str | Sequence[str],
        *,
        top_k: int = 5,
        **options: Unpack[Options],
    ) -> list[Answer]:
        """Answer questions about images.

        Args:
            images: N images, or one for all questions.
            questions: N questions, or one for all images.
            top_k: number of answers to each question.
            options: see `Options`.

        Returns:
            A result for each question, as of `POST /v1/vqa`.
        """
        _check_top_k(top_k)
        finish = answers.question_answers(self.model, top_k)
        return self._pairs("vqa", images, questions, finish, options)

    def entail(
        self,
        images: ImageLike | Sequence[ImageLike],
        hypotheses: str | Sequence[str],
        **options: Unpack[Options],
    ) -> list[Answer]:
        """Decide whether hypotheses follow from images.

        Args:
            images: N images, or one for all hypotheses.
            hypotheses: N hypotheses, or one for all images.
            options: see `Options`.

        Returns:
            A result for each hypothesis, as of `POST /v1/entail`.
        """
        finish = answers.entailment(self.model)
        return self._pairs("entail", images, hypotheses, finish, options)

    def reason(
        self,
        pairs: ImagePair | Sequence[ImagePair],
        statements: str | Sequence[str],
        **options: Unpack[Options],
    ) -> list[Answer]:
        """Decide whether statements are true of pairs of images.

        Args:
            pairs: N pairs of a left and a right image, or one pair, a tuple, for all statements.
            statements: N statements, or one for all pairs.
            options: see `Options`.

        Returns:
            A result for each statement, as of `POST /v1/reason`.
        """
        finish = answers.reasoning(self.model)
        sides = [image for left, right in _image_pairs(pairs) for image in (left, right)]
        return self._pairs("reason", sides, statements, finish, options, per_item=2)

    def match(
        self,
        images: ImageLike | Sequence[ImageLike],
        texts: str | Sequence[str],
        **options: Unpack[Options],
    ) -> list[Answer]:
        """Match every image with every text.

        Args:
            images: an image or several.
            texts: a text or several.
            options: see `Options`.

        Returns:
            A result for each image, with a score for each text, as of `POST /v1/match`.
        """
        self._check("match")
        encoded, listed = _encoded(images), _texts(texts)
        items = matrix(len(encoded), len(listed), max_pairs=len(encoded) * len(listed))
        finish = answers.matching(self.model)
        return self._answers("match", encoded, listed, items, finish, options, row=len(listed))

    def _check(self, task: Task) -> None:
        if task not in self.model.tasks:
            known = ", ".join(self.model.tasks)
            raise InvalidRequest(f"{self.model.name} has no task {task!r}; it has: {known}.")

    def _each_image(
        self,
        task: Task,
        images: ImageLike | Sequence[ImageLike],
        finish: Finish,
        options: Options,
    ) -> list[Answer]:
        results = []
        for wave in _waves(_listed(images)):
            items = [Item((index,)) for index in range(len(wave))]
            results += self._answers(task, _encoded(wave), [], items, finish, options)
        return results

    def _pairs(
        self,
        task: Task,
        images: ImageLike | Sequence[ImageLike],
        texts: str | Sequence[str],
        finish: Finish,
        options: Options,
        *,
        per_item: int = 1,
    ) -> list[Answer]:
        self._check(task)
        encoded, listed = _encoded(images), _texts(texts)
        items = one_by_one(len(encoded), len(listed), name="text", per_item=per_item)
        return self._answers(task, encoded, listed, items, finish, options)

    def _answers(
        self,
        task: Task,
        encoded: Sequence[bytes],
        texts: Sequence[str],
        items: Sequence[Item],
        finish: Finish,
        options: Options,
        *,
        row: int = 1,
    ) -> list[Answer]:
        request = Request(
            model=self.model.name,
            task=task,
            images=encoded,
            texts=texts,
            items=items,
            selector=Selector(
                level=options.get("level"),
                reduction=options.get("reduction"),
                min_accuracy=options.get("min_accuracy"),
            ),
            slots=options.get("slots", False),
        )
        result = self._runner.run(request)
        return all_succeeded(answers.answers(self.model, request, result, finish, row=row))

    def _label_vectors(self, labels: Sequence[str], template: str | None) -> Vectors:
        request = Request(
            model=self.model.name,
            task="embed",
            texts=_texts(label_texts(self.model, labels, template)),
            text_field="labels",
            items=[Item((), index) for index in range(len(labels))],
        )
        items = all_succeeded(self._runner.run(request).items)
        return np.stack([vector(self.model, item.output) for item in items])


def open_bundle(bundle: str | PathLike[str], *, device: Device = "cpu") -> Predictor:
    """Open a bundle for inference from Python.

    Args:
        bundle: the bundle's folder.
        device: the device that runs it: "cpu", "cuda" or "tensorrt".

    Returns:
        A predictor, which is also a context manager.

    Raises:
        BundleError: there is no bundle, or it is damaged.
        RuntimeError: the device is not available.
    """
    opened = Bundle.open(Path(bundle))
    reason = _missing(device)
    if reason is not None:
        raise RuntimeError(f"device {device!r} is not available: {reason}")
    return Predictor(opened, device=device)


def _missing(device: Device) -> str | None:
    """Return why a device is not available; None if it is."""
    if device == "cuda":
        return session.missing()
    return runtime.missing() if device == "tensorrt" else None


def _check_top_k(top_k: int) -> None:
    if top_k < 1:
        raise InvalidRequest(f"top_k is {top_k}; it must be at least 1.")


def _listed(images: ImageLike | Sequence[ImageLike]) -> Sequence[ImageLike]:
    if isinstance(images, str | PathLike | bytes | Image.Image | np.ndarray):
        images = [images]
    if not images:
        raise InvalidRequest("Pass at least one image.")
    return images


def _image_pairs(pairs: ImagePair | Sequence[ImagePair]) -> Sequence[ImagePair]:
    # A tuple of pairs is a sequence of pairs, as a list of pairs is.
    if isinstance(pairs, tuple) and not all(isinstance(pair, tuple) for pair in pairs):
        return [cast(ImagePair, pairs)]
    return cast(Sequence[ImagePair], pairs)


def _waves(listed: Sequence[ImageLike]) -> Iterator[Sequence[ImageLike]]:
    for start in range(0, len(listed), _MAX_DECODED):
        yield listed[start : start + _MAX_DECODED]


def _encoded(images: ImageLike | Sequence[ImageLike]) -> list[bytes]:
    return [encoded(image) for image in _listed(images)]


def _texts(texts: str | Sequence[str]) -> list[str]:
    listed = [texts] if isinstance(texts, str) else list(texts)
    if not listed:
        raise InvalidRequest("Pass at least one text.")
    for index, text in enumerate(listed):
        try:
            readable(text)
        except ValueError as error:
            raise InvalidRequest(f"Text {index} {error}.") from None
    return listed
