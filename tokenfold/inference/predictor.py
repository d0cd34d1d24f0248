"""Predictor: inference on one bundle from Python, without a server.

The results are those of the server's routes, as plain dicts; see docs/python-api.md.
"""

from __future__ import annotations

import io
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any, Self, TypedDict, Unpack, cast

import numpy as np
import numpy.typing as npt
from PIL import Image

from tokenfold.bundle.bundle import Bundle
from tokenfold.bundle.tasks import Task
from tokenfold.inference import answers, images, sessions
from tokenfold.inference.answers import Answer, Finish
from tokenfold.inference.backend import PIXELS, TOKENS, Call, Sample, Shape
from tokenfold.inference.errors import InvalidRequest, RequestError
from tokenfold.inference.levels import Selector
from tokenfold.inference.model import Model
from tokenfold.inference.outputs import Vectors, similarity_of, vector
from tokenfold.inference.prepared import Prepared
from tokenfold.inference.request import Item, ItemResult, Request, Result, matrix, one_by_one
from tokenfold.inference.texts import readable
from tokenfold.runtime.graph import Device
from tokenfold.runtime.machine import cores

ImageLike = str | PathLike[str] | bytes | Image.Image | npt.NDArray[np.uint8]
"""A path, the bytes of an image file, a Pillow image, or an array (H, W, 3) uint8 in RGB."""

ImagePair = tuple[ImageLike, ImageLike]
"""The left and the right image of a pair."""

MAX_PIXELS = 200_000_000
"""Largest width times height of an image."""

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


@dataclass(frozen=True, slots=True)
class _Run:
    output: Sample
    batch_size: int
    seconds: float
    ended: float


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
        self._backend = sessions.load(bundle, device)
        self._pool = ThreadPoolExecutor(self._backend.max_concurrent_runs or cores())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Release the model. Later calls fail."""
        self._pool.shutdown()
        self._backend.close()

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
        results = []
        for answer in answers.answers(self.model, request, self._run(request), finish, row=row):
            if isinstance(answer, RequestError):
                raise answer
            results.append(answer)
        return results

    def _label_vectors(self, labels: Sequence[str], template: str | None) -> Vectors:
        pattern = similarity_of(self.model).template if template is None else template
        request = Request(
            model=self.model.name,
            task="embed",
            texts=_texts([pattern.replace("{}", label) for label in labels]),
            text_field="labels",
            items=[Item((), index) for index in range(len(labels))],
        )
        outcomes = self._run(request).items
        rows = [
            vector(self.model, item.output) for item in outcomes if isinstance(item, ItemResult)
        ]
        return np.stack(rows)

    def _run(self, request: Request) -> Result:
        """Run a request.

        Raises:
            RequestError: an image or a text cannot be used, or the selector is invalid.
        """
        prepared = Prepared.of(self.model, request)
        assert isinstance(request.selector, Selector)  # see `_answers`
        choice = self.model.levels.choose(request.selector, request.task)
        decoded = list(self._pool.map(self._decode, request.images))
        inputs = {image: pixels for image, (pixels, _) in enumerate(decoded)}
        shapes: list[Shape] = [(pixels.shape[0], pixels.shape[1]) for pixels, _ in decoded]
        embeds = [
            (prepared.embed_call(shapes[image]), {PIXELS[0]: inputs[image]})
            for image in prepared.shared
        ]
        embedded = dict(zip(prepared.shared, self._batches(embeds, slots=False), strict=True))
        inputs |= {image: run.output[TOKENS[0]] for image, run in embedded.items()}
        calls = [
            prepared.call(item, choice, [shapes[image] for image in item.images])
            for item in request.items
        ]
        samples = [prepared.sample(item, inputs) for item in request.items]
        jobs = [(call, sample) for (call, _), sample in zip(calls, samples, strict=True)]
        runs = self._batches(jobs, slots=request.slots and bool(request.images))
        items = [
            ItemResult(
                output=run.output,
                works=works,
                shapes=[shapes[image] for image in item.images],
                batch_size=run.batch_size,
                decode_seconds=sum(decoded[image][1] for image in item.images),
                embed_seconds=sum(
                    embedded[image].seconds for image in item.images if image in embedded
                ),
                run_seconds=run.seconds,
                ended=run.ended,
            )
            for item, (_, works), run in zip(request.items, calls, runs, strict=True)
        ]
        return Result(choice, items, prepared.texts)

    def _decode(self, encoded: bytes | str) -> tuple[npt.NDArray[Any], float]:
        begun = time.perf_counter()
        pixels = images.decode(encoded, self.model.manifest.preprocess, max_pixels=MAX_PIXELS)
        return pixels, time.perf_counter() - begun

    def _batches(self, jobs: Sequence[tuple[Call, Sample]], *, slots: bool) -> list[_Run]:
        """Run jobs, in batches of the backend's size, concurrently."""
        waiting: dict[Call, list[int]] = {}
        for index, (call, _) in enumerate(jobs):
            waiting.setdefault(call, []).append(index)
        batches: list[tuple[Call, list[int]]] = []
        for call, indices in waiting.items():
            while indices:
                size = max(1, self._backend.batch_size_for(call, len(indices)))
                batches.append((call, indices[:size]))
                indices = indices[size:]

        def run(batch: tuple[Call, list[int]]) -> list[_Run]:
            call, indices = batch
            begun = time.perf_counter()
            outputs = self._backend.run([jobs[index][1] for index in indices], call, slots=slots)
            ended = time.perf_counter()
            return [_Run(output, len(indices), ended - begun, ended) for output in outputs]

        runs: list[_Run | None] = [None] * len(jobs)
        for (_, indices), outputs in zip(batches, self._pool.map(run, batches), strict=True):
            for index, output in zip(indices, outputs, strict=True):
                runs[index] = output
        return [run for run in runs if run is not None]


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
    return Predictor(Bundle.open(Path(bundle)), device=device)


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
    return [_bytes(image) for image in _listed(images)]


def _bytes(image: ImageLike) -> bytes:
    if isinstance(image, bytes):
        return image
    if isinstance(image, str | PathLike):
        return Path(image).read_bytes()
    if isinstance(image, np.ndarray):
        image = Image.fromarray(image)
    if image.mode not in ("1", "L", "LA", "P", "RGB", "RGBA", "I;16"):
        image = image.convert("RGB")
    file = io.BytesIO()
    # Without loss, and with the orientation.
    image.save(file, "PNG", compress_level=1, exif=image.getexif())
    return file.getvalue()


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
