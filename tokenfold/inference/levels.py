"""Levels: from a selector (a name, a reduction, a budget of time or accuracy) to a plan."""

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
from tokenfold.inference.errors import (
    AccuracyBudget,
    InvalidRequest,
    LatencyBudget,
    NoProfile,
    TooSlowNow,
    TwoSelectors,
    UnknownLevel,
)
from tokenfold.inference.work import Size, Work, Works

CUSTOM = "custom"


class Selector(NamedTuple):
    """The selector of a level: at most one attribute is set.

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
        """Check that at most one attribute is set.

        Raises:
            TwoSelectors: several attributes are set; the message names them.
        """
        names = [name for name, value in self._asdict().items() if value is not None]
        if len(names) > 1:
            raise TwoSelectors(
                f"Pass at most one of {', '.join(self._fields)}, not {' and '.join(names)}."
            )


class Choice(NamedTuple):
    """A chosen reduction.

    Attributes:
        level: the name of the level, or "custom".
        plan: the plan at the nominal size: of images, and of the longest text if there are texts.
        requested: the fraction of FLOPs that was to be removed, 0 to 1.
        work: the cost at the nominal size.
    """

    level: str
    plan: Plan
    requested: float
    work: Work


class Fit(NamedTuple):
    """The plan and the cost of a choice for one size."""

    plan: Plan
    work: Work


class Levels:
    """The levels of one model."""

    def __init__(
        self,
        manifest: Manifest,
        profile: Profile | None,
        *,
        default: str | None = None,
        seconds: Callable[[Works], float] | None = None,
    ) -> None:
        """Order the levels.

        Args:
            manifest: of the bundle.
            profile: of the bundle, if it was measured.
            default: level for a request that selects none; by default the manifest's.
            seconds: expected duration of a run; by default its FLOPs, which order levels alike.

        Raises:
            UnknownLevel: the model has no such default level.
        """
        self.manifest = manifest
        self._seconds = _flops if seconds is None else seconds
        # From the least reduced to the most.
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
        # Of two names of one plan, the less reduced level names it.
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
        duration: Callable[[Choice], float] | None = None,
    ) -> Choice:
        """Return the level for a request.

        Args:
            selector: the selector of the level.
            task: the task, whose measured accuracy counts.
            wait: seconds that the request would wait for a worker.
            duration: returns the seconds that all runs of the request take; by default those of
                one run at the nominal size.

        Raises:
            TwoSelectors: the selector has more than one attribute.
            UnknownLevel: the model has no level of that name.
            InvalidRequest: the reduction is out of range.
            LatencyBudget, AccuracyBudget, NoProfile: no level can meet the budget.
            TooSlowNow: a level could meet the budget if the queue were shorter.
        """
        selector.check()
        if selector.reduction is not None:
            return self._reduced(selector.reduction)
        if selector.max_latency_ms is not None:
            budget = selector.max_latency_ms / 1000.0
            return self._named(self._within(budget, task, wait, duration or self._duration))
        if selector.min_accuracy is not None:
            return self._named(self._accurate(selector.min_accuracy, task))
        return self._named(selector.level if selector.level is not None else self.default)

    def fit(self, choice: Choice, size: Size | None) -> Fit:
        """Return the plan of a choice for a text and an image of given lengths.

        Args:
            choice: the choice.
            size: the lengths; None for networks without texts, whose images have one size.
        """
        if size is None or size == self.nominal:
            return Fit(choice.plan, choice.work)
        return self._fit(choice.requested, size)

    @property
    def nominal(self) -> Size | None:
        """The bundle's image size and longest text; None for networks without texts."""
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

    def _duration(self, choice: Choice) -> float:
        return self._seconds((choice.work,))

    def _within(
        self, budget: float, task: Task, wait: float, duration: Callable[[Choice], float]
    ) -> str:
        """Return the most accurate level that answers within `budget` seconds."""
        times = {name: duration(self._named(name)) for name in self.levels}
        fitting = [name for name, seconds in times.items() if seconds + wait <= budget]
        if fitting:
            return max(fitting, key=lambda name: self._merit(name, task))
        fastest = min(times, key=lambda name: times[name])
        fact = f"the fastest level, {fastest}, takes about {times[fastest] * 1000:.1f} ms"
        if times[fastest] <= budget:
            raise TooSlowNow(
                f"No answer is possible within {budget * 1000:g} ms at the moment: {fact}, after "
                f"{wait * 1000:.0f} ms in the queue.",
                retry_after=max(1, math.ceil(wait)),
            )
        raise LatencyBudget(f"No answer is possible within {budget * 1000:g} ms: {fact}.")

    def _accurate(self, min_accuracy: float, task: Task) -> str:
        """Return the fastest level whose measured quality is at least `min_accuracy`.

        The measured value counts, not the low end of its interval: the levels of a model were
        measured on the same images, so their order is more certain than the interval suggests.
        """
        quality = self.quality[task]
        if not quality:
            raise NoProfile(
                f"The accuracy of {self.manifest.name} at {task} was never measured; select by "
                "level, reduction or max_latency_ms."
            )
        reaching = [name for name, measured in quality.items() if measured.value >= min_accuracy]
        if reaching:
            return min(reaching, key=lambda name: self._duration(self._named(name)))
        best = max(quality, key=lambda name: quality[name].value)
        raise AccuracyBudget(
            f"No level of {self.manifest.name} reaches {min_accuracy:g}: the best, {best}, was "
            f"measured at {quality[best].value:.4f} ({quality[best].metric})."
        )

    def _merit(self, name: str, task: Task) -> tuple[float, float]:
        """Order levels by measured quality, if every level has one, then by less reduction."""
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


def _flops(works: Works) -> float:
    return float(sum(work.flops for work in works))
