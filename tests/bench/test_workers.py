"""Processes beside the bench: which rows share one, and how they come and go."""

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
    row, most = json.loads(line)
    if most > 1:
        sys.exit("too much")
    print(json.dumps({"seconds": row + most, "graph": row > 0}), flush=True)
"""


def runs(way: TorchWay, level: str, batch: int) -> TorchRun:
    return TorchRun(way, level, (0, 0) if level == "r=0" else (1, 1), batch)


def all_of(*ways: TorchWay) -> list[TorchRun]:
    return [
        runs(way, level, batch) for way in ways for level in ("r=0", "r=1") for batch in (1, 8)
    ]


@pytest.fixture
def answering(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers, "COMMAND", (sys.executable, "-c", ANSWERS))


@pytest.mark.usefixtures("answering")
def test_rows_that_compile_to_the_same_share_a_process(tmp_path: Path) -> None:
    with Workers(tmp_path, all_of("eager", "blocks", "compiled")) as started:
        # All that is eager; blocks by whether they reduce, and whether images are single.
        assert len(started) == 1 + 4 + 4
        ready, lost = started.ready(60)
        assert lost == []
        assert set(ready) == set(all_of("eager", "blocks", "compiled"))
        sizes = {one: len(worker.runs) for one, (worker, _) in ready.items()}
        assert {sizes[one] for one in all_of("eager")} == {4}
        assert {sizes[one] for one in all_of("blocks", "compiled")} == {1}
        for one, (worker, row) in ready.items():
            assert worker.torch == "1.2"
            np.testing.assert_array_equal(worker.logits[row], [[sizes[one], one.batch]])


@pytest.mark.usefixtures("answering")
def test_a_row_times_its_own_slices(tmp_path: Path) -> None:
    with Workers(tmp_path, all_of("eager")) as started:
        ready, _ = started.ready(60)
        worker, row = ready[runs("eager", "r=1", 8)]
        subject = worker.subject(row)
        assert subject.batch == 8
        assert subject.seconds(0.5) == row + 0.5
        assert worker.graph(row) == (row > 0)
        with pytest.raises(WorkerError, match="too much"):
            subject.seconds(2.0)
        # And again: it stays dead, and nobody waits for it.
        with pytest.raises(WorkerError, match="too much"):
            subject.seconds(0.5)


def test_what_failed_is_told_rather_than_advice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = "torch._dynamo.exc.BackendCompilerFailed: no compiler\\n\\nSet TORCH_LOGS for more"
    dying = (sys.executable, "-c", f"raise SystemExit('{said}')")
    monkeypatch.setattr(workers, "COMMAND", dying)
    with Workers(tmp_path, all_of("eager")) as started:
        ready, lost = started.ready(60)
    assert not ready
    assert all(text.endswith("BackendCompilerFailed: no compiler") for text in lost)


def test_what_is_late_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    late = (sys.executable, "-c", "import time; time.sleep(60)")
    monkeypatch.setattr(workers, "COMMAND", late)
    begin = time.monotonic()
    with Workers(tmp_path, all_of("eager", "compiled")) as started:
        ready, lost = started.ready(0.1)
    assert time.monotonic() - begin < 30
    assert ready == {}
    assert len(lost) == 5
    assert all("not ready within 0.1 s" in one for one in lost)
