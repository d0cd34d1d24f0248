"""Self-test: compare a backend with the CPU on random inputs before it serves requests.

Unreduced, its numbers must agree with the CPU's, for one item and for several in one run. Reduced,
they may differ, because of two nearly equal similarities either may win. Then the outputs must be
finite, of the right shapes, and their slots must be valid positions.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from tokenfold.bundle.bundle import Bundle
from tokenfold.bundle.manifest import Precision
from tokenfold.bundle.tasks import Task
from tokenfold.bundle.text import TextEncoder
from tokenfold.inference.backend import Backend, Call, Sample, Step
from tokenfold.service.scheduling.backends import noise

# Largest difference, as a share of the largest number.
TOLERANCE: Mapping[Precision, float] = {"fp32": 1e-3, "fp16": 5e-2, "int8": 5e-2}

_TOGETHER = 3


class SelfTestError(RuntimeError):
    """A backend disagrees with the CPU; the message has the differences."""


class _Probe(NamedTuple):
    """A test case.

    Attributes:
        name: for messages.
        call: the kind of run.
        samples: inputs of the items that share a run.
        exact: whether nothing is reduced, so that the numbers must agree.
    """

    name: str
    call: Call
    samples: Sequence[Sample]
    exact: bool


def check(bundle: Bundle, backend: Backend, reference: Backend) -> dict[str, float]:
    """Test every call of a bundle.

    Args:
        bundle: the bundle.
        backend: the backend to test.
        reference: the same bundle on the CPU.

    Returns:
        The largest relative difference from the reference of each test case.

    Raises:
        SelfTestError: a difference is too large, or a reduced output is invalid.
        Exception: the backend does not run.
    """
    tolerance = TOLERANCE[bundle.manifest.precision]
    differences: dict[str, float] = {}
    for probe in _probes(bundle):
        alone = [
            backend.run([sample], probe.call, slots=not probe.exact)[0] for sample in probe.samples
        ]
        if not probe.exact:
            for output in alone:
                _check_reduced(probe, output)
            continue
        expected = reference.run(probe.samples[:1], probe.call, slots=False)[0]
        differences[probe.name] = _difference(alone[:1], [expected])
        together = backend.run(probe.samples, probe.call, slots=False)
        differences[f"{probe.name} together"] = _difference(together, alone)
        if max(differences.values()) > tolerance:
            listed = ", ".join(f"{name} {by:.2e}" for name, by in differences.items())
            raise SelfTestError(f"differs from the CPU by more than {tolerance:g}: {listed}")
    return differences


def _probes(bundle: Bundle) -> Iterator[_Probe]:
    manifest = bundle.manifest
    unreduced = manifest.workload.unreduced
    reduced = manifest.levels[manifest.default_level].plan
    vocabulary, text = 0, None
    if manifest.text is not None:
        spec = manifest.text
        vocabulary = TextEncoder.open(bundle.tokenizer, spec.most_tokens, spec.padding).vocabulary
    if manifest.kind == "pair":
        text = spec.most_tokens

    def probe(task: Task, step: Step, plan: tuple[int, ...], text: int | None) -> _Probe:
        images = noise.images_of(task, step)
        samples = [
            noise.sample(manifest, images=images, text=text, vocabulary=vocabulary, seed=seed)
            for seed in range(_TOGETHER if plan == unreduced else 1)
        ]
        shapes = (manifest.preprocess.size,) * images
        plans = () if step in ("embed", "read") else (plan,) * images
        exact = plan == unreduced
        name = step if step in ("embed", "read") else task if exact else f"{task}, reduced"
        return _Probe(name, Call(step, task, plans, shapes), samples, exact)

    first = next(iter(manifest.tasks))
    if manifest.kind == "dual":
        for length in noise.lengths(manifest):
            yield probe(first, "read", unreduced, length)
    if manifest.kind == "pair":
        yield probe(first, "embed", unreduced, None)
    for task in manifest.tasks:
        yield probe(task, "answer", unreduced, text)
    if reduced != unreduced:
        yield probe(first, "answer", reduced, text)


def _difference(outputs: Sequence[Sample], references: Sequence[Sample]) -> float:
    """Return the largest relative difference; infinity if shapes differ or a value is infinite."""
    worst = 0.0
    for output, reference in zip(outputs, references, strict=True):
        for name, value in reference.items():
            worst = max(worst, _relative(output.get(name), value))
    return worst


def _relative(output: npt.NDArray[Any] | None, expected: npt.NDArray[Any]) -> float:
    if output is None or output.shape != expected.shape:
        return float("inf")
    if not (np.isfinite(output) & np.isfinite(expected)).all():
        return float("inf")
    largest = float(np.abs(expected).max())
    return float(np.abs(output - expected).max()) / (largest or 1.0)


def _check_reduced(probe: _Probe, output: Sample) -> None:
    for name, value in output.items():
        if not np.isfinite(value).all():
            raise SelfTestError(f"{probe.name}: {name} is not finite")
        if name.endswith("slots") and not ((value >= -1) & (value < value.size)).all():
            raise SelfTestError(f"{probe.name}: {name} are no positions of {value.size} tokens")
