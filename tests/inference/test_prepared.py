"""Tests of prepared requests: shared images, calls and expected costs."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from tests.service.standin_pairs import SIDE, WORKLOAD, pair_bundle
from tokenfold.bundle.bundle import Bundle
from tokenfold.bundle.tasks import Task
from tokenfold.inference.backend import Step
from tokenfold.inference.errors import EmptyText
from tokenfold.inference.levels import Selector
from tokenfold.inference.model import Model
from tokenfold.inference.prepared import Prepared
from tokenfold.inference.request import Item, Request, matrix
from tokenfold.inference.work import Works

SHAPE = (SIDE, SIDE)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    opened = Model(Bundle.open(pair_bundle(tmp_path_factory.mktemp("bundle") / "a")))
    opened.open_text()
    return opened


def prepare(
    model: Model, task: Task, images: int, texts: Sequence[str], items: Sequence[Item]
) -> Prepared:
    request = Request(
        model=model.name, task=task, items=items, images=[b""] * images, texts=list(texts)
    )
    return Prepared.of(model, request)


def seconds(works: Works, step: Step) -> float:
    """Return an expected duration that identifies the step and the tokens."""
    base = {"answer": 1000.0, "fuse": 2000.0, "embed": 3000.0, "read": 4000.0}[step]
    return base + sum(work.tokens_in for work in works)


def test_images_of_a_matrix_with_several_texts_are_shared(model: Model) -> None:
    prepared = prepare(model, "match", 2, ["red", "blue"], matrix(2, 2, max_pairs=4))
    assert list(prepared.shared) == [0, 1]
    assert prepared.runs == 6


def test_images_with_one_text_are_not_shared(model: Model) -> None:
    prepared = prepare(model, "match", 2, ["red"], matrix(2, 1, max_pairs=4))
    assert list(prepared.shared) == []
    assert prepared.runs == 2


def test_both_images_of_a_pair_are_shared_if_one_is(model: Model) -> None:
    items = [Item((0, 1), 0), Item((0, 2), 1)]
    prepared = prepare(model, "reason", 3, ["red", "blue"], items)
    assert sorted(prepared.shared) == [0, 1, 2]


def test_the_costs_of_a_matrix_are_its_items_then_its_embeddings(model: Model) -> None:
    texts = ["red", "it is blue"]
    prepared = prepare(model, "match", 2, texts, matrix(2, 2, max_pairs=4))
    choice = model.levels.choose(Selector(), "match")
    short, long = (2000.0 + tokens + WORKLOAD.image for tokens in (3, 5))
    assert prepared.costs(choice, seconds) == [short, long, short, long, 3000.0, 3000.0]


def test_each_text_length_and_step_is_costed_once(model: Model) -> None:
    calls: list[Step] = []

    def counted(works: Works, step: Step) -> float:
        calls.append(step)
        return seconds(works, step)

    prepared = prepare(model, "match", 4, ["red", "it is blue"], matrix(4, 2, max_pairs=8))
    prepared.costs(model.levels.choose(Selector(), "match"), counted)
    assert calls == ["fuse", "fuse", "embed"]


def test_a_call_has_the_plan_of_its_text_length(model: Model) -> None:
    prepared = prepare(model, "vqa", 1, ["what"], [Item((0,), 0)])
    choice = model.levels.choose(Selector(level="fast"), "vqa")
    call, (work,) = prepared.call(prepared.request.items[0], choice, [SHAPE])
    assert (call.step, call.task, call.shapes) == ("answer", "vqa", (SHAPE,))
    assert work.tokens_in == 3 + WORKLOAD.image
    assert work.flops == WORKLOAD.sized(text=3).flops(call.plans[0])


def test_a_sample_holds_pixels_or_tokens_by_their_name_in_the_graph(model: Model) -> None:
    inputs = {0: np.zeros(1), 1: np.ones(1)}
    single = prepare(model, "reason", 2, ["red"], [Item((0, 1), 0)])
    sample = single.sample(single.request.items[0], inputs)
    assert set(sample) == {"image", "second_image", "input_ids"}
    assert sample["second_image"] is inputs[1]
    items = [Item((0, 1), 0), Item((0, 1), 1)]
    shared = prepare(model, "reason", 2, ["red", "blue"], items)
    sample = shared.sample(items[1], inputs)
    assert set(sample) == {"image_tokens", "second_image_tokens", "input_ids"}


def test_a_text_without_words_is_refused(model: Model) -> None:
    with pytest.raises(EmptyText, match=r"text\.1: is empty"):
        prepare(model, "vqa", 1, ["red", "\u200b"], [Item((0,), 0), Item((0,), 1)])
