"""Worker processes of the bench: their grouping, start, answers and end."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import numpy as np
import pytest

from tokenfold.bench import workers
from tokenfold.bench.options import TorchWay
from tokenfold.bench.workers import TorchRun, WorkerError, Workers

ANSWERS = """
import json, sys
rows = json.loads(sys.argv[-1])
logits = [[[len(rows), batch]] for _, _, batch in rows]
print(json.dumps({"torch": "1.2", "logits": logits}), flush=True)
for line in sys.stdin:
    row, budget = json.loads(line)
    if budget > 1:
        sys.exit("too much")
    print(json.dumps({"seconds": row + budget, "graph": row > 0}), flush=True)
"""


def torch_run(way: TorchWay, level: str, batch: int) -> TorchRun:
    return TorchRun(way, level, (0, 0) if level == "r=0" else (1, 1), batch)


def all_of(*ways: TorchWay) -> list[TorchRun]:
    return [
        torch_run(way, level, batch) for way in ways for level in ("r=0", "r=1") for batch in (1, 8)
    ]


@pytest.fixture
def fake_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers, "COMMAND", (sys.executable, "-c", ANSWERS))


@pytest.mark.usefixtures("fake_process")
def test_runs_with_the_same_compiled_code_share_a_process(tmp_path: Path) -> None:
    with Workers(tmp_path, all_of("eager", "blocks", "compiled")) as started:
        # One process for eager; one for blocks per reduced or not, and single images or not.
        assert len(started) == 1 + 4 + 4
        ready, lost = started.ready(60)
        assert lost == []
        assert set(ready) == set(all_of("eager", "blocks", "compiled"))
        sizes = {run: len(worker.runs) for run, (worker, _) in ready.items()}
        assert {sizes[run] for run in all_of("eager")} == {4}
        assert {sizes[run] for run in all_of("blocks", "compiled")} == {1}
        for run, (worker, row) in ready.items():
            assert worker.torch == "1.2"
            np.testing.assert_array_equal(worker.logits[row], [[sizes[run], run.batch]])


@pytest.mark.usefixtures("fake_process")
def test_a_worker_times_its_own_slices(tmp_path: Path) -> None:
    with Workers(tmp_path, all_of("eager")) as started:
        ready, _ = started.ready(60)
        worker, row = ready[torch_run("eager", "r=1", 8)]
        subject = worker.subject(row)
        assert subject.batch == 8
        assert subject.seconds(0.5) == row + 0.5
        assert worker.graph(row) == (row > 0)
        with pytest.raises(WorkerError, match="too much"):
            subject.seconds(2.0)
        # A second request fails at once, because the process is dead.
        with pytest.raises(WorkerError, match="too much"):
            subject.seconds(0.5)


def test_the_error_is_reported_rather_than_the_advice_after_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stderr = "torch._dynamo.exc.BackendCompilerFailed: no compiler\\n\\nSet TORCH_LOGS for more"
    dying = (sys.executable, "-c", f"raise SystemExit('{stderr}')")
    monkeypatch.setattr(workers, "COMMAND", dying)
    with Workers(tmp_path, all_of("eager")) as started:
        ready, lost = started.ready(60)
    assert not ready
    assert all(text.endswith("BackendCompilerFailed: no compiler") for text in lost)


def test_late_processes_are_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    late = (sys.executable, "-c", "import time; time.sleep(60)")
    monkeypatch.setattr(workers, "COMMAND", late)
    begin = time.monotonic()
    with Workers(tmp_path, all_of("eager", "compiled")) as started:
        ready, lost = started.ready(0.1)
    assert time.monotonic() - begin < 30
    assert ready == {}
    assert len(lost) == 5
    assert all("not ready within 0.1 s" in run for run in lost)
