"""Do the graphs of a network with texts compute what PyTorch does? See `tokenfold.export.verify`.

Texts of several lengths are asked, alone and padded in a batch, of images of the network's own grid
and, where it takes others, of another one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from tokenfold.bundle.manifest import Manifest
from tokenfold.bundle.preprocess import Pixels
from tokenfold.bundle.random_texts import random_texts
from tokenfold.bundle.tasks import PairTask
from tokenfold.bundle.text import TextEncoder
from tokenfold.bundle.workload import Plan
from tokenfold.export.verify import VerificationError, judge, random_images
from tokenfold.models.networks.pair import images as images_of
from tokenfold.runtime.pair import Float, Int, PairOutput, PairRunner, ask

LEAST_WORDS = 3
"""Tokens of a text of one word."""


class Case(NamedTuple):
    """A batch to ask.

    Attributes:
        left, right: (B, H, W, 3) uint8; the right ones are looked at to reason only.
        ids, size: (B, T), size 0 for padding.
    """

    left: Pixels
    right: Pixels
    ids: Int
    size: Float


def cases(
    text: TextEncoder, size: tuple[int, int], *, patch: int | None, seed: int = 0
) -> list[Case]:
    """Random images with random texts.

    Args:
        size: height and width of an image, pixels.
        patch: side of a patch, where the network takes other grids.
    """
    most = text.most_tokens
    some = max(LEAST_WORDS, most // 2)
    grids = {size: [(most, LEAST_WORDS, some), (some, LEAST_WORDS), (max(LEAST_WORDS, some - 1),)]}
    if patch is not None:
        grids[size[0] + patch, max(patch, size[1] - patch)] = [(some, most)]
    found = []
    for grid, batches in grids.items():
        for lengths in batches:
            seed += 1
            images = random_images(grid, 2 * len(lengths), seed)
            # Noise and smooth images take turns: so each half has both.
            middle = len(lengths)
            ids, sizes = random_texts(text, lengths, seed)
            found.append(Case(images[:middle], images[middle:], ids, sizes))
    return found


def verify(
    manifest: Manifest,
    reference: PairRunner,
    sessions: Sequence[PairRunner],
    given: Sequence[Case],
    progress: Callable[[], None] = lambda: None,
) -> dict[str, float]:
    """Compare sessions with the network in PyTorch, at every level and for every task.

    Args:
        progress: called after each level.

    Returns:
        The largest deviation of each level, see `tokenfold.export.verify.judge`.

    Raises:
        VerificationError: a level deviates by more than its precision allows, or is not finite.
    """
    networks = [reference, *sessions]
    embedded = [
        [[network.embed(side) for side in (case.left, case.right)] for case in given]
        for network in networks
    ]
    deviations = dict.fromkeys(manifest.levels, 0.0)
    for name, level in manifest.levels.items():
        plans = [
            manifest.plan(level, text=case.ids.shape[1], image=images[0].shape[1])
            for case, images in zip(given, embedded[0], strict=True)
        ]
        for task in manifest.pair_tasks:
            wanted, *answers = [
                [
                    _answer(network, images[: images_of(task)], case, plan, task)
                    for images, case, plan in zip(own, given, plans, strict=True)
                ]
                for network, own in zip(networks, embedded, strict=True)
            ]
            for found in answers:
                deviation = judge(
                    f"level {name}, {task}",
                    manifest.precision,
                    np.concatenate([one.logits for one in found]),
                    np.concatenate([one.logits for one in wanted]),
                    np.concatenate([_moved(*two) for two in zip(found, wanted, strict=True)]),
                    reduced=any(level.plan),
                )
                deviations[name] = max(deviations[name], deviation)
        progress()
    return deviations


class _Answer(NamedTuple):
    logits: Float
    slots: Int


def _answer(
    network: PairRunner, images: Sequence[Float], case: Case, plan: Plan, task: PairTask
) -> _Answer:
    found = ask(network, images, case.ids, case.size, [plan] * len(images), task=task, slots=True)
    logits = found[-1].logits
    assert logits is not None
    return _Answer(logits, np.concatenate([_slots(one, case) for one in found], axis=1))


def _slots(output: PairOutput, case: Case) -> Int:
    """Of text and image side by side, -1 for padding, which may go anywhere."""
    assert output.text_slots is not None
    assert output.image_slots is not None
    text = np.where(case.size > 0, output.text_slots, -1)
    return np.concatenate([text, output.image_slots], axis=1)


def _moved(found: _Answer, wanted: _Answer) -> npt.NDArray[np.bool_]:
    if found.slots.min() < -1:
        raise VerificationError("a token is in a slot below -1")
    moved: npt.NDArray[np.bool_] = (found.slots != wanted.slots).any(1)
    return moved
