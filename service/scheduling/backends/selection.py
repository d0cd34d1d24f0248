"""Selection of a model's backend: the first that is available and agrees with the CPU."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Sequence

from tokenfold.bundle.bundle import Bundle
from tokenfold.inference import sessions
from tokenfold.inference.backend import Backend
from tokenfold.service.scheduling.backends import selftest
from tokenfold.service.scheduling.backends.chain import BackendChain
from tokenfold.service.scheduling.backends.kinds import BackendKind
from tokenfold.service.scheduling.backends.metrics import BackendMetrics

logger = logging.getLogger(__name__)

AUTO = "auto"


class BackendError(ValueError):
    """The requested backend cannot be used; the message says why."""


def usable(kinds: Sequence[BackendKind], wanted: str) -> list[BackendKind]:
    """Return the kinds to try, in order.

    Args:
        kinds: all kinds, the best first.
        wanted: "auto" for all that are available, or the name of one.

    Raises:
        BackendError: the named kind is not available.
    """
    available = []
    for kind in kinds:
        if wanted not in (AUTO, kind.name):
            continue
        why = kind.missing()
        if why is None:
            available.append(kind)
        elif wanted == AUTO:
            logger.info("backend %s is not used: %s", kind.name, why)
        else:
            raise BackendError(f"backend {kind.name}: {why}")
    if not available:
        raise BackendError(f"no backend {wanted!r} is available")
    return available


def fitting(bundle: Bundle, kinds: Sequence[BackendKind]) -> list[BackendKind]:
    """Return the kinds that can run a bundle.

    Raises:
        BackendError: none can.
    """
    suitable, refused = [], []
    for kind in kinds:
        why = kind.unfit(bundle)
        if why is None:
            suitable.append(kind)
        else:
            refused.append(f"backend {kind.name}: {why}")
    if not suitable:
        raise BackendError("; ".join(refused))
    return suitable


def opened(
    bundle: Bundle,
    kinds: Sequence[BackendKind],
    *,
    metrics: BackendMetrics,
    switched: Callable[[BackendChain], None] = lambda _: None,
) -> BackendChain:
    """Load a bundle on the first kind that can load it and passes the self-test.

    Args:
        bundle: the bundle.
        kinds: kinds to try, in order.
        metrics: where failures are counted.
        switched: see `BackendChain`.

    Raises:
        Exception: of the last kind, if every kind fails.
    """
    fit = fitting(bundle, kinds)
    name = bundle.manifest.name
    for index, kind in enumerate(fit):
        rest = fit[index + 1 :]
        try:
            backend = tested(bundle, kind)
        except Exception as error:
            metrics.failed(name, kind.name)
            if not rest:
                raise
            logger.error(
                "%s: backend %s is not used: %s", *(name, kind.name, error), exc_info=error
            )
            continue
        return BackendChain(bundle, kind, backend, rest, metrics=metrics, switched=switched)
    raise AssertionError("kinds must not be empty")


def tested(bundle: Bundle, kind: BackendKind) -> Backend:
    """Load a bundle on a kind, and check that it agrees with the CPU.

    Raises:
        SelfTestError: it does not agree.
        Exception: it does not load, or does not run.
    """
    backend = kind.load(bundle)
    # The CPU is the reference for the others.
    if kind.device == "cpu":
        return backend
    try:
        with contextlib.closing(sessions.load(bundle)) as reference:
            differences = selftest.check(bundle, backend, reference)
    except BaseException:
        with contextlib.suppress(Exception):
            backend.close()
        raise
    logger.info(
        "%s: backend %s passed its self-test",
        *(bundle.manifest.name, kind.name),
        extra={"differences": {name: float(f"{by:.3g}") for name, by in differences.items()}},
    )
    return backend
