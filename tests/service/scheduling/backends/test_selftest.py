"""The self-test: what answers as the CPU does passes, and nothing else."""

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
    """A backend whose outputs are changed."""

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
        found = [
            {name: value.copy() for name, value in one.items()}
            for one in self._inner.run(samples, call, slots=slots)
        ]
        for one in found:
            self._change(one, call, len(samples))
        return found

    def close(self) -> None: ...


def reducing(path: Path) -> Bundle:
    """Of which the default level reduces."""
    found = Bundle.open(path)
    manifest = found.manifest.model_copy(update={"default_level": "balanced"})
    return Bundle(found.folder, manifest, found.profile)


@pytest.fixture(scope="module", params=[bundle, pair_bundle, dual_bundle])
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return reducing(request.param(tmp_path_factory.mktemp("bundle") / "a"))


def is_reduced(call: Call) -> bool:
    return any(sum(plan) for plan in call.plans)


def check(made: Bundle, change: Change) -> dict[str, float]:
    reference = sessions.load(made)
    return selftest.check(made, Changed(reference, change), reference)


def test_every_kind_of_network_passes(made: Bundle) -> None:
    reference = sessions.load(made)
    tested = Changed(reference)
    seen = selftest.check(made, tested, reference)
    assert max(seen.values()) < 1e-5
    steps = {call.step for call, _ in tested.calls}
    match made.manifest.kind:
        case "classifier":
            assert set(seen) == {"classify", "classify together"}
            assert steps == {"answer"}
        case "pair":
            assert set(seen) == {
                f"{what}{how}" for what in ("embed", *TASKS) for how in ("", " together")
            }
            assert steps == {"answer", "embed"}
        case "dual":
            assert {"read", "embed"} <= set(seen)
            assert steps == {"answer", "read"}
    assert {size for call, size in tested.calls if not is_reduced(call)} == {1, 3}
    assert any(is_reduced(call) for call, _ in tested.calls)


def number(found: dict[str, np.ndarray]) -> np.ndarray:
    return next(found[name] for name in ("logits", "vector", "image_tokens") if name in found)


def test_other_numbers_fail(made: Bundle) -> None:
    def change(found: dict[str, np.ndarray], call: Call, _: int) -> None:
        if not is_reduced(call):
            number(found).flat[0] += 0.01 * np.abs(number(found)).max()

    with pytest.raises(SelfTestError, match=r"more than 0\.001: .*e-0"):
        check(made, change)


def test_a_little_is_no_difference(made: Bundle) -> None:
    def change(found: dict[str, np.ndarray], call: Call, _: int) -> None:
        if not is_reduced(call):
            number(found).flat[0] += 1e-4 * np.abs(number(found)).max()

    assert 1e-5 < max(check(made, change).values()) < 1e-3


def test_a_batch_that_answers_otherwise_fails(made: Bundle) -> None:
    def change(found: dict[str, np.ndarray], _: Call, items: int) -> None:
        if items > 1:
            number(found)[...] *= 1.5

    with pytest.raises(SelfTestError, match=r"together [3-7]\.\d+e-01"):
        check(made, change)


def test_numbers_that_are_none_fail(made: Bundle) -> None:
    def change(found: dict[str, np.ndarray], _: Call, __: int) -> None:
        number(found).flat[0] = np.nan

    with pytest.raises(SelfTestError, match="inf"):
        check(made, change)


def test_reduced_answers_may_differ_but_not_be_none(made: Bundle) -> None:
    def differ(found: dict[str, np.ndarray], call: Call, _: int) -> None:
        if is_reduced(call):
            number(found)[...] *= 1.5

    def overflow(found: dict[str, np.ndarray], call: Call, _: int) -> None:
        if is_reduced(call):
            number(found).flat[0] = np.inf

    def misplace(found: dict[str, np.ndarray], _: Call, __: int) -> None:
        for name, value in found.items():
            if name.endswith("slots"):
                value[0] = 1000

    check(made, differ)
    with pytest.raises(SelfTestError, match=r"reduced: \w+ is not finite"):
        check(made, overflow)
    with pytest.raises(SelfTestError, match="slots are no positions of"):
        check(made, misplace)


def test_other_shapes_fail(made: Bundle) -> None:
    class Cut(Changed):
        def run(self, samples: Sequence[Sample], call: Call, *, slots: bool) -> Sequence[Sample]:
            found = super().run(samples, call, slots=slots)
            return [{name: value[:1] for name, value in one.items()} for one in found]

    reference = sessions.load(made)
    with pytest.raises(SelfTestError, match="inf"):
        selftest.check(made, Cut(reference), reference)


def test_a_backend_that_does_not_run_fails_by_its_own_error(made: Bundle) -> None:
    def change(*_: object) -> None:
        raise OSError("gone")

    with pytest.raises(OSError, match="gone"):
        check(made, change)
