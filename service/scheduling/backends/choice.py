"""Which backend runs a model: the first of those that are here, and that answer as the CPU does."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Sequence

from tokenfold.bundle.bundle import Bundle
from tokenfold.service.scheduling.backends import loading, selftest
from tokenfold.service.scheduling.backends.backend import Backend
from tokenfold.service.scheduling.backends.chain import BackendChain
from tokenfold.service.scheduling.backends.kinds import BackendKind
from tokenfold.service.scheduling.backends.metrics import BackendMetrics

logger = logging.getLogger(__name__)

AUTO = "auto"


class BackendError(ValueError):
    """A backend that was asked for cannot be used; the message says why."""


def usable(kinds: Sequence[BackendKind], wanted: str) -> list[BackendKind]:
    """The kinds to try, in order.

    Args:
        wanted: "auto" for all that are here, or one's name.

    Raises:
        BackendError: the wanted one is not here.
    """
    found = []
    for kind in kinds:
        if wanted not in (AUTO, kind.name):
            continue
        why = kind.missing()
        if why is None:
            found.append(kind)
        elif wanted == AUTO:
            logger.info("backend %s is not used: %s", kind.name, why)
        else:
            raise BackendError(f"backend {kind.name}: {why}")
    if not found:
        raise BackendError(f"there is no backend {wanted!r}")
    return found


def fitting(bundle: Bundle, kinds: Sequence[BackendKind]) -> list[BackendKind]:
    """Those of `kinds` that can run a bundle.

    Raises:
        BackendError: none can.
    """
    found, refused = [], []
    for kind in kinds:
        why = kind.unfit(bundle)
        if why is None:
            found.append(kind)
        else:
            refused.append(f"backend {kind.name}: {why}")
    if not found:
        raise BackendError("; ".join(refused))
    return found


def opened(
    bundle: Bundle,
    kinds: Sequence[BackendKind],
    *,
    metrics: BackendMetrics,
    switched: Callable[[BackendChain], None] = lambda _: None,
) -> BackendChain:
    """A bundle on the first of the kinds that loads it and passes the self-test.

    Args:
        switched: see `BackendChain`.

    Raises:
        Exception: of the last kind, if that fails too.
    """
    fit = fitting(bundle, kinds)
    name = bundle.manifest.name
    for at, kind in enumerate(fit):
        rest = fit[at + 1 :]
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
    raise AssertionError("there is always a last one")


def tested(bundle: Bundle, kind: BackendKind) -> Backend:
    """A backend that answers as the CPU does.

    Raises:
        SelfTestError: it does not.
        Exception: it does not load, or does not run.
    """
    backend = kind.load(bundle)
    # The CPU is what the others are held against.
    if kind.device == "cpu":
        return backend
    try:
        with contextlib.closing(loading.load(bundle)) as reference:
            seen = selftest.check(bundle, backend, reference)
    except BaseException:
        with contextlib.suppress(Exception):
            backend.close()
        raise
    logger.info(
        "%s: backend %s passed its self-test",
        *(bundle.manifest.name, kind.name),
        extra={"differences": {what: float(f"{by:.3g}") for what, by in seen.items()}},
    )
    return backend
