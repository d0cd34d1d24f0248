"""From what a request asks for to a plan: a level, a reduction, or a budget of time or accuracy."""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import lru_cache
from typing import NamedTuple

from export.bundle import Level, Manifest, Profile, Quality
from models.reduction.schedule import plan_for
from models.reduction.workload import Plan, PlanError
from service.costs import Costs
from service.errors import (
    AccuracyBudget,
    InvalidRequest,
    LatencyBudget,
    NoProfile,
    TooSlowNow,
    TwoSelectors,
    UnknownLevel,
)

CUSTOM = "custom"


class Selector(NamedTuple):
    """What a request says of its level: at most one of these.

    Attributes:
        level: a name of the manifest.
        reduction: fraction of FLOPs to remove, 0 to 1.
        max_latency_ms: waiting and running together may take this long.
        min_accuracy: the profile's quality must reach this, 0 to 1.
    """

    level: str | None = None
    reduction: float | None = None
    max_latency_ms: float | None = None
    min_accuracy: float | None = None

    def check(self) -> None:
        """Refuse more than one.

        Raises:
            TwoSelectors: it names those that were given.
        """
        given = [name for name, value in self._asdict().items() if value is not None]
        if len(given) > 1:
            raise TwoSelectors(
                f"Choose by one of {', '.join(self._fields)}, not by {' and '.join(given)} at once."
            )


class Work(NamedTuple):
    """What a plan costs for one image.

    Attributes:
        flops: multiply-accumulates; `full` those of the unreduced network; `ratio` the quotient.
        tokens_in, tokens_out: before the first layer, and after the last.
    """

    flops: int
    full: int
    ratio: float
    tokens_in: int
    tokens_out: int


class Choice(NamedTuple):
    """A plan, and what is to be said of it.

    Attributes:
        level: its name, or "custom"; a label of bounded variety.
        requested: the fraction of FLOPs that was to be removed.
    """

    level: str
    plan: Plan
    requested: float
    work: Work


class Levels:
    """The levels of one model."""

    def __init__(
        self,
        manifest: Manifest,
        profile: Profile | None,
        costs: Costs,
        *,
        default: str | None = None,
    ) -> None:
        """Args:
            default: level for a request that chooses none; by default the manifest's.

        Raises:
            UnknownLevel: there is no such default.
        """
        self.manifest = manifest
        self.costs = costs
        # From the least reduced to the most; two names of one plan keep the first.
        self.levels: Mapping[str, Level] = dict(
            sorted(
                manifest.levels.items(),
                key=lambda item: (-item[1].flops_ratio, item[1].reduction),
            )
        )
        self.quality: Mapping[str, Quality] = {
            name: found
            for name, level in (profile.levels if profile else {}).items()
            for found in level.quality.values()
        }
        self._names: dict[Plan, str] = {}
        for name, level in self.levels.items():
            self._names.setdefault(level.plan, name)
        self.default = default or manifest.default_level
        self._level(self.default)
        self.work = lru_cache(maxsize=1024)(self._work)

    def choose(self, selector: Selector, *, wait: float = 0.0, rounds: int = 1) -> Choice:
        """The plan for a request.

        Args:
            wait: seconds that it would wait for a worker now.
            rounds: runs one after the other that its images need, beside each other where there
                are workers enough.

        Raises:
            TwoSelectors, UnknownLevel, InvalidRequest: the request is wrong.
            LatencyBudget, AccuracyBudget, NoProfile: no level can meet it.
            TooSlowNow: a level could, were it not for the queue.
        """
        selector.check()
        if selector.reduction is not None:
            return self._reduced(selector.reduction)
        if selector.max_latency_ms is not None:
            return self._named(self._within(selector.max_latency_ms / 1000.0, wait, rounds))
        if selector.min_accuracy is not None:
            return self._named(self._accurate(selector.min_accuracy))
        return self._named(selector.level if selector.level is not None else self.default)

    def _level(self, name: str) -> Level:
        try:
            return self.levels[name]
        except KeyError:
            raise UnknownLevel(
                f"{self.manifest.name} has no level {name!r}; known: {', '.join(self.levels)}."
            ) from None

    def _named(self, name: str) -> Choice:
        level = self._level(name)
        return Choice(name, level.plan, level.reduction, self.work(level.plan))

    def _reduced(self, reduction: float) -> Choice:
        try:
            plan = plan_for(self.manifest.workload, reduction, self.manifest.shape)
        except PlanError as error:
            raise InvalidRequest(f"{error}.") from error
        return Choice(self._names.get(plan, CUSTOM), plan, reduction, self.work(plan))

    def _within(self, budget: float, wait: float, rounds: int) -> str:
        """The most accurate level that answers in `budget` seconds."""
        times = {
            name: self.costs.seconds(level.plan) * rounds for name, level in self.levels.items()
        }
        fitting = [name for name, time in times.items() if time + wait <= budget]
        if fitting:
            return max(fitting, key=self._merit)
        fastest = min(times, key=lambda name: times[name])
        takes = f"the fastest level, {fastest}, takes about {times[fastest] * 1000:.1f} ms"
        if times[fastest] <= budget:
            raise TooSlowNow(
                f"In {budget * 1000:g} ms no answer is possible now: {takes}, after "
                f"{wait * 1000:.0f} ms in the queue.",
                retry_after=max(1, math.ceil(wait)),
            )
        raise LatencyBudget(f"In {budget * 1000:g} ms no answer is possible: {takes}.")

    def _accurate(self, wanted: float) -> str:
        """The fastest level whose measured quality is at least `wanted`.

        The measured value counts, not the low end of its interval: levels of one model were
        measured on the same images, so that their order means more than the interval says.
        """
        if not self.quality:
            raise NoProfile(
                f"The accuracy of {self.manifest.name} was never measured; choose by level, "
                "reduction or max_latency_ms."
            )
        reaching = [name for name, found in self.quality.items() if found.value >= wanted]
        if reaching:
            return min(reaching, key=lambda name: self.costs.seconds(self.levels[name].plan))
        best = max(self.quality, key=lambda name: self.quality[name].value)
        raise AccuracyBudget(
            f"No level of {self.manifest.name} reaches {wanted:g}: the best, {best}, was measured "
            f"at {self.quality[best].value:.4f} ({self.quality[best].metric})."
        )

    def _merit(self, name: str) -> tuple[float, float]:
        """Measured quality first, where every level has one; then as little reduction as can be."""
        complete = len(self.quality) == len(self.levels)
        return (self.quality[name].value if complete else 0.0, self.levels[name].flops_ratio)

    def _work(self, plan: Plan) -> Work:
        workload = self.manifest.workload
        counts = workload.widths(plan)
        spent, full = workload.flops(plan), workload.flops(workload.unreduced)
        return Work(spent, full, spent / full, counts[0], counts[-1])
