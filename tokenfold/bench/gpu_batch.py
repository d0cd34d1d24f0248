"""One batch size on a GPU: all levels and PyTorch, measured in one set of rounds."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

from tokenfold.bench.gpu_report import ContenderName, GpuRow, Speed, TorchSpeed, speeds
from tokenfold.bench.measure import Measurement, Subject, TimedSubject, measure_rounds
from tokenfold.bench.report import RelativeSpeed, relative_speed
from tokenfold.bench.subjects import Graphs, graph_subject
from tokenfold.bench.targets import PlanTarget
from tokenfold.bench.workers import Ready, TorchRun, WorkerError
from tokenfold.bundle.workload import Plan

CALLERS = 2
"""Concurrent callers, as in the service: while one batch runs, another one is copied."""

Mode = Literal["resident", "served", "alone"]


class GpuSubjectKey(NamedTuple):
    """Identifies the subject of a slice of time: a mode, contender or PyTorch run, at a level."""

    name: Mode | ContenderName | TorchRun
    level: str


class Contender(NamedTuple):
    """Another way to run the same plans in the same rounds, at least those of `targets`."""

    name: ContenderName
    graphs: Graphs
    targets: Mapping[str, PlanTarget]


class BatchResult(NamedTuple):
    """Measurements of one batch size; see `GpuReport` for the fields."""

    rows: list[GpuRow]
    torch: list[TorchSpeed]
    against: dict[ContenderName, list[RelativeSpeed]]
    lost: list[str]


class Batch:
    """A batch size with all subjects that run at it.

    Attributes:
        subjects: number of subjects that get slices of time.
    """

    def __init__(
        self,
        images: int,
        inputs: Sequence[Any],
        graphs: Graphs,
        targets: Mapping[str, PlanTarget],
        ready: Ready,
    ) -> None:
        """Collect the subjects of all levels, and the PyTorch runs of this batch size.

        Args:
            images: images per run.
            inputs: inputs that the runs cycle through; see `random_inputs`.
            targets: plans by level; the first one is unreduced.
            ready: PyTorch runs that are ready to be measured, of any batch size.
        """
        self._images = images
        self._inputs = inputs
        self._targets = targets
        self._contender_levels: dict[ContenderName, list[str]] = {}
        self._subjects: dict[GpuSubjectKey, Subject | TimedSubject] = {}
        for level, target in targets.items():
            self._add(level, graphs, target.plan)
        self._ready = {run: place for run, place in ready.items() if run.batch == images}
        for run, (worker, row) in self._ready.items():
            self._subjects[GpuSubjectKey(run, run.level)] = worker.subject(row)

    @property
    def subjects(self) -> int:
        return len(self._subjects)

    def compare(self, contender: Contender) -> None:
        """Add a contender at each of its plans."""
        name, graphs, targets = contender
        for level, target in targets.items():
            self._contender_levels.setdefault(name, []).append(level)
            subject = self._resident(graphs, target.plan)
            self._subjects[GpuSubjectKey(name, level)] = subject or self._served(
                graphs, target.plan
            )

    def measure(self, rounds: int, seconds: float, progress: Callable[[], None]) -> BatchResult:
        """Measure all subjects; see `measure_rounds`.

        If a PyTorch process fails, everything is measured again without PyTorch.
        """
        lost: list[str] = []
        try:
            measurements = measure_rounds(
                self._subjects, rounds=rounds, seconds=seconds, progress=progress
            )
        except WorkerError as error:
            lost.append(f"PyTorch, batch {self._images}: {error}")
            for run in self._ready:
                del self._subjects[GpuSubjectKey(run, run.level)]
            self._ready = {}
            measurements = measure_rounds(
                self._subjects, rounds=rounds, seconds=seconds, progress=progress
            )
        return BatchResult(
            self._rows(measurements),
            [
                self._torch(run, worker.graph(row), measurements)
                for run, (worker, row) in self._ready.items()
            ],
            {
                name: [
                    relative_speed(
                        level,
                        measurements[_comparison_key(level, measurements)],
                        measurements[GpuSubjectKey(name, level)],
                    )
                    for level in levels
                ]
                for name, levels in self._contender_levels.items()
            },
            lost,
        )

    def _add(self, level: str, graphs: Graphs, plan: Plan) -> None:
        self._subjects[GpuSubjectKey("served", level)] = self._served(graphs, plan)
        self._subjects[GpuSubjectKey("alone", level)] = graph_subject(
            graphs, self._inputs, plan, 1, self._images
        )
        resident = self._resident(graphs, plan)
        if resident is not None:
            self._subjects[GpuSubjectKey("resident", level)] = resident

    def _served(self, graphs: Graphs, plan: Plan) -> Subject:
        return graph_subject(graphs, self._inputs, plan, CALLERS, self._images)

    def _resident(self, graphs: Graphs, plan: Plan) -> TimedSubject | None:
        queue = graphs.resident(self._inputs[0], plan)
        return None if queue is None else TimedSubject(queue.seconds, self._images)

    def _rows(self, measurements: Mapping[GpuSubjectKey, Measurement]) -> list[GpuRow]:
        served = self._speeds("served", measurements)
        resident = self._speeds("resident", measurements)
        alone = {level: measurements[GpuSubjectKey("alone", level)] for level in self._targets}
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

    def _speeds(
        self, name: Mode, measurements: Mapping[GpuSubjectKey, Measurement]
    ) -> dict[str, Speed]:
        mode_measurements = {
            key.level: measured for key, measured in measurements.items() if key.name == name
        }
        return speeds(self._targets, mode_measurements) if mode_measurements else {}

    def _torch(
        self, run: TorchRun, graph: bool, measurements: Mapping[GpuSubjectKey, Measurement]
    ) -> TorchSpeed:
        measurement = measurements[GpuSubjectKey(run, run.level)]
        ratio = measurements[_comparison_key(run.level, measurements)].ratio_to(measurement)
        return TorchSpeed(
            way=run.way,
            level=run.level,
            batch=run.batch,
            images_per_second=measurement.images_per_second,
            graph=graph,
            ratio=ratio.median,
            low=ratio.low,
            high=ratio.high,
        )


def _comparison_key(level: str, measurements: Mapping[GpuSubjectKey, Measurement]) -> GpuSubjectKey:
    """Return the subject that is compared with others on the same GPU."""
    key = GpuSubjectKey("resident", level)
    return key if key in measurements else GpuSubjectKey("served", level)
