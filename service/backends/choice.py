"""Which backend runs a model: the first of those that are here, and that answer as the CPU does."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Sequence

from export.bundle import Bundle
from service.backends import loading, selftest
from service.backends.backend import Backend
from service.backends.fallback import Fallback
from service.backends.kinds import Kind
from service.backends.metrics import BackendMetrics

logger = logging.getLogger(__name__)

AUTO = "auto"


class BackendError(ValueError):
    """A backend that was asked for cannot be used; the message says why."""


def usable(kinds: Sequence[Kind], wanted: str) -> list[Kind]:
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


def fitting(bundle: Bundle, kinds: Sequence[Kind]) -> list[Kind]:
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
    kinds: Sequence[Kind],
    *,
    metrics: BackendMetrics,
    switched: Callable[[Fallback], None] = lambda _: None,
) -> Fallback:
    """A bundle on the first of the kinds that loads it and passes the self-test.

    Args:
        switched: see `Fallback`.

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
        return Fallback(bundle, kind, backend, rest, metrics=metrics, switched=switched)
    raise AssertionError("there is always a last one")


def tested(bundle: Bundle, kind: Kind) -> Backend:
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
