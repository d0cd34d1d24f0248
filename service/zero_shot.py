"""Zero-shot classification: vectors of the labels that a request names."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from tokenfold.inference.errors import EmptyText, InvalidRequest
from tokenfold.inference.outputs import Vector, Vectors, label_texts, vector
from tokenfold.inference.request import Item, Request, all_succeeded
from tokenfold.service.errors import Expired
from tokenfold.service.scheduling.catalog import Catalog, ServedModel
from tokenfold.service.scheduling.dispatcher import Disconnect, Dispatcher

# Texts in the queue at once: a request with a thousand labels must not fill it.
_WAVE = 64
# Vectors in the cache: 16 MB if each has 512 components.
_MAX_VECTORS = 8192


class VectorCache:
    """Least-recently-used cache of text vectors by model and text. Used by one thread."""

    def __init__(self, max_vectors: int = _MAX_VECTORS) -> None:
        self._max_vectors = max_vectors
        self._vectors: OrderedDict[tuple[str, str], Vector] = OrderedDict()

    def __len__(self) -> int:
        return len(self._vectors)

    def get(self, model: str, texts: Iterable[str]) -> dict[str, Vector]:
        """Return the vectors of those texts that are cached."""
        vectors = {}
        for text in texts:
            key = (model, text)
            if key in self._vectors:
                self._vectors.move_to_end(key)
                vectors[text] = self._vectors[key]
        return vectors

    def put(self, model: str, vectors: Mapping[str, Vector]) -> None:
        """Cache vectors by their texts."""
        for text, row in vectors.items():
            # A view of a row would keep its whole batch in memory.
            self._vectors[model, text] = row.copy()
            self._vectors.move_to_end((model, text))
        while len(self._vectors) > self._max_vectors:
            self._vectors.popitem(last=False)


class LabelEncoder:
    """Vectors of labels. Most requests name the same labels, so they are cached.

    Attributes:
        cache: vectors of labels.
    """

    def __init__(self, dispatcher: Dispatcher) -> None:
        self.cache = VectorCache()
        self._dispatcher = dispatcher

    async def vectors(
        self,
        model: ServedModel,
        labels: Sequence[str],
        template: str | None,
        *,
        disconnect: Disconnect | None = None,
    ) -> Vectors:
        """Return the vectors of labels, (labels, width). Uncached ones are encoded first.

        Args:
            model: a dual encoder.
            labels: the labels.
            template: text of a label, which replaces `{}`; by default the model's.
            disconnect: returns when the caller has disconnected.

        Raises:
            EmptyText: a label has no words.
            Expired: the labels were not encoded in time.
            RequestError: no text can be encoded now.
        """
        texts = label_texts(model, labels, template)
        vectors = self.cache.get(model.name, texts)
        positions = list(
            {text: index for index, text in enumerate(texts) if text not in vectors}.values()
        )
        limits = self._dispatcher.limits
        deadline = time.perf_counter() + limits.max_seconds
        wave = min(_WAVE, limits.max_runs)
        for start in range(0, len(positions), wave):
            part = positions[start : start + wave]
            request = Request(
                model=model.name,
                task="embed",
                texts=[texts[index] for index in part],
                text_field="labels",
                items=[Item((), index) for index in range(len(part))],
                deadline=deadline,
            )
            try:
                result = await self._dispatcher.answer(model, request, disconnect=disconnect)
            except EmptyText as error:
                raise EmptyText("labels", part[error.index]) from None
            try:
                items = all_succeeded(result.items)
            except Expired:
                raise Expired(
                    f"The labels were not encoded within {limits.max_seconds:g} s. Those that were "
                    "encoded are cached.",
                    retry_after=1,
                ) from None
            rows = [vector(model, item.output) for item in items]
            encoded = dict(zip(request.texts, rows, strict=True))
            self.cache.put(model.name, encoded)
            vectors |= encoded
        return np.stack([vectors[text] for text in texts])


def check_model(catalog: Catalog, name: str | None, *, labels: bool) -> None:
    """Check that a request to classify names a suitable model, if it names one.

    Args:
        catalog: the served models.
        name: the name of the model, or None.
        labels: whether the request has labels.

    Raises:
        InvalidRequest: the model needs labels and there are none, or the other way round.
    """
    model = None if name is None else catalog.named(name)
    if model is None:
        return
    if labels and "classify" in model.tasks:
        raise InvalidRequest(
            f"{model.name} has classes of its own: leave labels out, or name a dual encoder."
        )
    if not labels and "embed" in model.tasks:
        raise InvalidRequest(f"{model.name} has no classes of its own: pass the classes as labels.")
