"""From what a request asks for to a plan: a level, a reduction, or a budget of time or accuracy."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import NamedTuple

from tokenfold.bundle.manifest import Level, Manifest
from tokenfold.bundle.pair_workload import PairWorkload
from tokenfold.bundle.profile import Profile, Quality
from tokenfold.bundle.schedule import plan_for
from tokenfold.bundle.tasks import Task
from tokenfold.bundle.workload import Plan, PlanError
from tokenfold.service.errors import (
    AccuracyBudget,
    InvalidRequest,
    LatencyBudget,
    NoProfile,
    TooSlowNow,
    TwoSelectors,
    UnknownLevel,
)
from tokenfold.service.scheduling.costs import Costs
from tokenfold.service.scheduling.work import Size, Work

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


class Choice(NamedTuple):
    """How much to reduce, and what is to be said of it.

    Attributes:
        level: its name, or "custom"; a label of bounded variety.
        plan, work: at the nominal size: of images, and with texts of the longest one.
        requested: the fraction of FLOPs that was to be removed.
    """

    level: str
    plan: Plan
    requested: float
    work: Work


class Fit(NamedTuple):
    """A choice at one size."""

    plan: Plan
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
        self.quality: Mapping[Task, Mapping[str, Quality]] = {
            task: {
                name: level.quality[task]
                for name, level in (profile.levels if profile else {}).items()
                if task in level.quality
            }
            for task in manifest.tasks
        }
        self._names: dict[Plan, str] = {}
        for name, level in self.levels.items():
            self._names.setdefault(level.plan, name)
        self.default = default or manifest.default_level
        self._level(self.default)
        self.work = lru_cache(maxsize=1024)(self._work)
        self._fit = lru_cache(maxsize=4096)(self._fitted)

    def choose(
        self,
        selector: Selector,
        task: Task,
        *,
        wait: float = 0.0,
        takes: Callable[[Choice], float] | None = None,
    ) -> Choice:
        """How much to reduce for a request.

        Args:
            wait: seconds that it would wait for a worker now.
            takes: seconds that all of its runs take; by default those of one at the nominal size.

        Raises:
            TwoSelectors, UnknownLevel, InvalidRequest: the request is wrong.
            LatencyBudget, AccuracyBudget, NoProfile: no level can meet it.
            TooSlowNow: a level could, were it not for the queue.
        """
        selector.check()
        if selector.reduction is not None:
            return self._reduced(selector.reduction)
        if selector.max_latency_ms is not None:
            budget = selector.max_latency_ms / 1000.0
            return self._named(self._within(budget, task, wait, takes or self._takes))
        if selector.min_accuracy is not None:
            return self._named(self._accurate(selector.min_accuracy, task))
        return self._named(selector.level if selector.level is not None else self.default)

    def fit(self, choice: Choice, size: Size | None) -> Fit:
        """The plan of a choice for texts and images of their own lengths.

        Args:
            size: None for networks that see images only, which are all of one size.
        """
        if size is None or size == self.nominal:
            return Fit(choice.plan, choice.work)
        return self._fit(choice.requested, size)

    @property
    def nominal(self) -> Size | None:
        """Of the bundle's own image size and the longest text; None without texts."""
        workload = self.manifest.workload
        if not isinstance(workload, PairWorkload):
            return None
        return Size(workload.text, workload.image)

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

    def _takes(self, choice: Choice) -> float:
        return self.costs.seconds((choice.work,))

    def _within(
        self, budget: float, task: Task, wait: float, takes: Callable[[Choice], float]
    ) -> str:
        """The most accurate level that answers in `budget` seconds."""
        times = {name: takes(self._named(name)) for name in self.levels}
        fitting = [name for name, time in times.items() if time + wait <= budget]
        if fitting:
            return max(fitting, key=lambda name: self._merit(name, task))
        fastest = min(times, key=lambda name: times[name])
        said = f"the fastest level, {fastest}, takes about {times[fastest] * 1000:.1f} ms"
        if times[fastest] <= budget:
            raise TooSlowNow(
                f"In {budget * 1000:g} ms no answer is possible now: {said}, after "
                f"{wait * 1000:.0f} ms in the queue.",
                retry_after=max(1, math.ceil(wait)),
            )
        raise LatencyBudget(f"In {budget * 1000:g} ms no answer is possible: {said}.")

    def _accurate(self, wanted: float, task: Task) -> str:
        """The fastest level whose measured quality is at least `wanted`.

        The measured value counts, not the low end of its interval: levels of one model were
        measured on the same images, so that their order means more than the interval says.
        """
        quality = self.quality[task]
        if not quality:
            raise NoProfile(
                f"The accuracy of {self.manifest.name} at {task} was never measured; choose by "
                "level, reduction or max_latency_ms."
            )
        reaching = [name for name, found in quality.items() if found.value >= wanted]
        if reaching:
            return min(reaching, key=lambda name: self._takes(self._named(name)))
        best = max(quality, key=lambda name: quality[name].value)
        raise AccuracyBudget(
            f"No level of {self.manifest.name} reaches {wanted:g}: the best, {best}, was measured "
            f"at {quality[best].value:.4f} ({quality[best].metric})."
        )

    def _merit(self, name: str, task: Task) -> tuple[float, float]:
        """Measured quality first, where every level has one; then as little reduction as can be."""
        quality = self.quality[task]
        complete = len(quality) == len(self.levels)
        return (quality[name].value if complete else 0.0, self.levels[name].flops_ratio)

    def _work(self, plan: Plan) -> Work:
        return Work.of(self.manifest.workload, plan)

    def _fitted(self, requested: float, size: Size) -> Fit:
        workload = self.manifest.workload
        assert isinstance(workload, PairWorkload)  # others have no sizes
        sized = workload.sized(text=size.text, image=size.image)
        plan = plan_for(sized, requested, self.manifest.shape)
        return Fit(plan, Work.of(sized, plan))
