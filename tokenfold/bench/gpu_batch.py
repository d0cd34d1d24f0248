"""One batch size on a GPU: every level's runs, and PyTorch's beside them, in one set of rounds."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

from tokenfold.bench.gpu_report import GpuRow, ContenderName, Speed, TorchSpeed, speeds
from tokenfold.bench.measure import Measurement, Subject, TimedSubject, measure_rounds
from tokenfold.bench.report import RelativeSpeed, relative_speed
from tokenfold.bench.subjects import Graphs, graph_subject
from tokenfold.bench.targets import PlanTarget
from tokenfold.bench.workers import TorchRun, Ready, WorkerError
from tokenfold.bundle.workload import Plan

CALLERS = 2
"""As the service's: while one batch runs, the images of the other are copied."""

Mode = Literal["resident", "served", "alone"]


class GpuSubjectKey(NamedTuple):
    """Whose slice of time it is."""

    who: Mode | ContenderName | TorchRun
    level: str


class Contender(NamedTuple):
    """What runs the same plans in the same rounds, those of `targets` at least."""

    who: ContenderName
    graphs: Graphs
    targets: Mapping[str, PlanTarget]


class BatchResult(NamedTuple):
    """What was measured of a batch size; see `GpuReport`."""

    rows: list[GpuRow]
    torch: list[TorchSpeed]
    against: dict[ContenderName, list[RelativeSpeed]]
    lost: list[str]


class Batch:
    """A batch size, with all that is to run at it.

    Attributes:
        subjects: how many get slices.
    """

    def __init__(
        self,
        images: int,
        inputs: Sequence[Any],
        graphs: Graphs,
        targets: Mapping[str, PlanTarget],
        ready: Ready,
    ) -> None:
        """Args:
        images: of one run.
        inputs: that runs take turns with; see `random_inputs`.
        targets: the first is unreduced.
        ready: what PyTorch has ready; of other batch sizes too.
        """
        self._images = images
        self._inputs = inputs
        self._targets = targets
        self._others: dict[ContenderName, list[str]] = {}
        self._own: dict[GpuSubjectKey, Subject | TimedSubject] = {}
        for level, target in targets.items():
            self._add(level, graphs, target.plan)
        self._ready = {one: where for one, where in ready.items() if one.batch == images}
        for one, (worker, row) in self._ready.items():
            self._own[GpuSubjectKey(one, one.level)] = worker.subject(row)

    @property
    def subjects(self) -> int:
        return len(self._own)

    def compare(self, beside: Contender) -> None:
        """Run something else beside, at those of the plans that it has."""
        who, graphs, targets = beside
        for level, target in targets.items():
            self._others.setdefault(who, []).append(level)
            own = self._resident(graphs, target.plan)
            self._own[GpuSubjectKey(who, level)] = own or self._served(graphs, target.plan)

    def measure(self, rounds: int, seconds: float, progress: Callable[[], None]) -> BatchResult:
        """See `measure_rounds`. Where a process of PyTorch's fails, all is measured without them."""
        lost: list[str] = []
        try:
            found = measure_rounds(self._own, rounds=rounds, seconds=seconds, progress=progress)
        except WorkerError as error:
            lost.append(f"PyTorch, batch {self._images}: {error}")
            for one in self._ready:
                del self._own[GpuSubjectKey(one, one.level)]
            self._ready = {}
            found = measure_rounds(self._own, rounds=rounds, seconds=seconds, progress=progress)
        return BatchResult(
            self._rows(found),
            [
                self._torch(one, worker.graph(row), found)
                for one, (worker, row) in self._ready.items()
            ],
            {
                who: [
                    relative_speed(level, found[_device(level, found)], found[GpuSubjectKey(who, level)])
                    for level in levels
                ]
                for who, levels in self._others.items()
            },
            lost,
        )

    def _add(self, level: str, graphs: Graphs, plan: Plan) -> None:
        self._own[GpuSubjectKey("served", level)] = self._served(graphs, plan)
        self._own[GpuSubjectKey("alone", level)] = graph_subject(graphs, self._inputs, plan, 1, self._images)
        resident = self._resident(graphs, plan)
        if resident is not None:
            self._own[GpuSubjectKey("resident", level)] = resident

    def _served(self, graphs: Graphs, plan: Plan) -> Subject:
        return graph_subject(graphs, self._inputs, plan, CALLERS, self._images)

    def _resident(self, graphs: Graphs, plan: Plan) -> TimedSubject | None:
        queue = graphs.resident(self._inputs[0], plan)
        return None if queue is None else TimedSubject(queue.seconds, self._images)

    def _rows(self, found: Mapping[GpuSubjectKey, Measurement]) -> list[GpuRow]:
        served = self._speeds("served", found)
        resident = self._speeds("resident", found)
        alone = {level: found[GpuSubjectKey("alone", level)] for level in self._targets}
        return [
            GpuRow(
                level=level,
                batch=self._images,
                flops_ratio=target.flops_ratio,
                resident=resident.get(level),
                served=served[level],
                p50_ms=alone[level].percentile_ms(50),
                p99_ms=alone[level].percentile_ms(99),
            )
            for level, target in self._targets.items()
        ]

    def _speeds(self, who: Mode, found: Mapping[GpuSubjectKey, Measurement]) -> dict[str, Speed]:
        own = {key.level: measured for key, measured in found.items() if key.who == who}
        return speeds(self._targets, own) if own else {}

    def _torch(self, one: TorchRun, graph: bool, found: Mapping[GpuSubjectKey, Measurement]) -> TorchSpeed:
        theirs = found[GpuSubjectKey(one, one.level)]
        ratio = found[_device(one.level, found)].ratio_to(theirs)
        return TorchSpeed(
            way=one.way,
            level=one.level,
            batch=one.batch,
            images_per_second=theirs.images_per_second,
            graph=graph,
            ratio=ratio.median,
            low=ratio.low,
            high=ratio.high,
        )


def _device(level: str, found: Mapping[GpuSubjectKey, Measurement]) -> GpuSubjectKey:
    """What is compared with others on the same GPU."""
    key = GpuSubjectKey("resident", level)
    return key if key in found else GpuSubjectKey("served", level)
