"""Tests of the self-test, which compares a backend with the CPU."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest

from tests.service.standin import bundle
from tests.service.standin_dual import dual_bundle
from tests.service.standin_pairs import TASKS, pair_bundle
from tokenfold.bundle.bundle import Bundle
from tokenfold.inference import sessions
from tokenfold.inference.backend import Backend, Call, Sample
from tokenfold.service.scheduling.backends import selftest
from tokenfold.service.scheduling.backends.selftest import SelfTestError

Change = Callable[[dict[str, np.ndarray], Call, int], None]


class Changed:
    """A backend that changes the outputs of another one."""

    native = True
    max_concurrent_runs = None

    def __init__(self, inner: Backend, change: Change = lambda *_: None) -> None:
        self._inner = inner
        self._change = change
        self.calls: list[tuple[Call, int]] = []

    def batch_size_for(self, call: Call, waiting: int, /) -> int:
        return self._inner.batch_size_for(call, waiting)

    def run(self, samples: Sequence[Sample], call: Call, *, slots: bool) -> Sequence[Sample]:
        self.calls.append((call, len(samples)))
        outputs = [
            {name: value.copy() for name, value in output.items()}
            for output in self._inner.run(samples, call, slots=slots)
        ]
        for output in outputs:
            self._change(output, call, len(samples))
        return outputs

    def close(self) -> None: ...


def reducing(path: Path) -> Bundle:
    """Open a bundle with a default level that reduces."""
    original = Bundle.open(path)
    manifest = original.manifest.model_copy(update={"default_level": "balanced"})
    return Bundle(original.folder, manifest, original.profile)


@pytest.fixture(scope="module", params=[bundle, pair_bundle, dual_bundle])
def tested_bundle(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Bundle:
    return reducing(request.param(tmp_path_factory.mktemp("bundle") / "a"))


def is_reduced(call: Call) -> bool:
    return any(sum(plan) for plan in call.plans)


def check(tested_bundle: Bundle, change: Change) -> dict[str, float]:
    reference = sessions.load(tested_bundle)
    return selftest.check(tested_bundle, Changed(reference, change), reference)


def test_a_correct_backend_passes_for_every_kind_of_network(tested_bundle: Bundle) -> None:
    reference = sessions.load(tested_bundle)
    tested = Changed(reference)
    differences = selftest.check(tested_bundle, tested, reference)
    assert max(differences.values()) < 1e-5
    steps = {call.step for call, _ in tested.calls}
    match tested_bundle.manifest.kind:
        case "classifier":
            assert set(differences) == {"classify", "classify together"}
            assert steps == {"answer"}
        case "pair":
            assert set(differences) == {
                f"{task}{suffix}" for task in ("embed", *TASKS) for suffix in ("", " together")
            }
            assert steps == {"answer", "embed"}
        case "dual":
            assert {"read", "embed"} <= set(differences)
            assert steps == {"answer", "read"}
    assert {size for call, size in tested.calls if not is_reduced(call)} == {1, 3}
    assert any(is_reduced(call) for call, _ in tested.calls)


def number(output: dict[str, np.ndarray]) -> np.ndarray:
    return next(output[name] for name in ("logits", "vector", "image_tokens") if name in output)


def test_different_numbers_fail(tested_bundle: Bundle) -> None:
    def change(output: dict[str, np.ndarray], call: Call, _: int) -> None:
        if not is_reduced(call):
            number(output).flat[0] += 0.01 * np.abs(number(output)).max()

    with pytest.raises(SelfTestError, match=r"more than 0\.001: .*e-0"):
        check(tested_bundle, change)


def test_small_differences_pass(tested_bundle: Bundle) -> None:
    def change(output: dict[str, np.ndarray], call: Call, _: int) -> None:
        if not is_reduced(call):
            number(output).flat[0] += 1e-4 * np.abs(number(output)).max()

    assert 1e-5 < max(check(tested_bundle, change).values()) < 1e-3


def test_a_batch_with_different_answers_fails(tested_bundle: Bundle) -> None:
    def change(output: dict[str, np.ndarray], _: Call, items: int) -> None:
        if items > 1:
            number(output)[...] *= 1.5

    with pytest.raises(SelfTestError, match=r"together [3-7]\.\d+e-01"):
        check(tested_bundle, change)


def test_nan_fails(tested_bundle: Bundle) -> None:
    def change(output: dict[str, np.ndarray], _: Call, __: int) -> None:
        number(output).flat[0] = np.nan

    with pytest.raises(SelfTestError, match="inf"):
        check(tested_bundle, change)


def test_answers_of_reduced_runs_may_differ_but_must_be_finite(tested_bundle: Bundle) -> None:
    def differ(output: dict[str, np.ndarray], call: Call, _: int) -> None:
        if is_reduced(call):
            number(output)[...] *= 1.5

    def overflow(output: dict[str, np.ndarray], call: Call, _: int) -> None:
        if is_reduced(call):
            number(output).flat[0] = np.inf

    def misplace(output: dict[str, np.ndarray], _: Call, __: int) -> None:
        for name, value in output.items():
            if name.endswith("slots"):
                value[0] = 1000

    check(tested_bundle, differ)
    with pytest.raises(SelfTestError, match=r"reduced: \w+ is not finite"):
        check(tested_bundle, overflow)
    with pytest.raises(SelfTestError, match="slots are no positions of"):
        check(tested_bundle, misplace)


def test_different_shapes_fail(tested_bundle: Bundle) -> None:
    class Cut(Changed):
        def run(self, samples: Sequence[Sample], call: Call, *, slots: bool) -> Sequence[Sample]:
            outputs = super().run(samples, call, slots=slots)
            return [{name: value[:1] for name, value in output.items()} for output in outputs]

    reference = sessions.load(tested_bundle)
    with pytest.raises(SelfTestError, match="inf"):
        selftest.check(tested_bundle, Cut(reference), reference)


def test_an_error_of_the_backend_is_passed_on(tested_bundle: Bundle) -> None:
    def change(*_: object) -> None:
        raise OSError("gone")

    with pytest.raises(OSError, match="gone"):
        check(tested_bundle, change)
