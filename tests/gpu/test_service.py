"""The service on a GPU: the shipped models answer as on the CPU, in batches, when it fails, and
while engines of TensorRT are built.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from load_tests.images import jpeg, synthetic
from tests.gpu import engines
from tests.service import standin
from tests.service.standin import Remote, serving, until
from tokenfold.service.app import create_app
from tokenfold.service.core import Core
from tokenfold.service.scheduling.backends.kinds import CPU, CUDA, BackendKind, all_kinds
from tokenfold.service.settings import DEMO

MISSING = CUDA.missing()
pytestmark = pytest.mark.skipif(MISSING is not None, reason=str(MISSING))

# Seconds that all models may take to be loaded, tested and recorded.
PATIENCE = 120.0

PHOTOS = [jpeg(synthetic(64, 64, seed)) for seed in range(8)]


def server(root: Path, backend: str, kinds: Sequence[BackendKind] = (CUDA, CPU)) -> Any:
    given = standin.settings(
        DEMO, backend=backend, workers=None, data_dir=str(root / backend), engines=root / "engines"
    )
    return create_app(given, kinds=kinds)


@pytest.fixture(scope="module")
def on_gpu(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Core, Remote]]:
    app = server(tmp_path_factory.mktemp("gpu"), "auto")
    with serving(app, patience=PATIENCE) as remote:
        assert app.state.core.failed is None
        yield app.state.core, remote


@pytest.fixture(scope="module")
def on_cpu(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Remote]:
    app = server(tmp_path_factory.mktemp("cpu"), "cpu")
    with serving(app, patience=PATIENCE) as remote:
        yield remote


def results(remote: Remote, task: str, level: str, **fields: Any) -> list[dict[str, Any]]:
    response = remote.ask(task, *PHOTOS, level=level, **fields)
    assert response.status_code == 200, response.text
    found: list[dict[str, Any]] = response.json()["results"]
    return found


def test_each_model_runs_where_it_should(on_gpu: tuple[Core, Remote]) -> None:
    core, remote = on_gpu
    for model in remote.get("/v1/models").json()["models"]:
        wanted = "cpu" if model["precision"] == "int8" else "cuda"
        assert (model["name"], model["backend"]) == (model["name"], wanted)
        assert model["native_ops"]
    for model in core.catalog:
        failed = {"model": model.name, "backend": "cuda"}
        assert remote.sample("tokenfold_backend_failures_total", **failed) == 0
        if model.backend.kind is CUDA:
            peak = {"model": model.name, "kind": "gpu_peak"}
            assert remote.sample("tokenfold_model_memory_bytes", **peak) > 0


def test_images_are_classified_alike(on_gpu: tuple[Core, Remote], on_cpu: Remote) -> None:
    for level in ("exact", "high"):
        both = (
            results(remote, "classify", level, model="cifar10", top_k=10)
            for remote in (on_gpu[1], on_cpu)
        )
        for found, wanted in zip(*both, strict=True):
            scores = {one["label"]: one["score"] for one in wanted["predictions"]}
            for one in found["predictions"]:
                # Tokens that are nearly as much alike may merge another way.
                close = 1e-4 if level == "exact" else 0.1
                assert one["score"] == pytest.approx(scores[one["label"]], abs=close)


def test_questions_are_answered_alike(on_gpu: tuple[Core, Remote], on_cpu: Remote) -> None:
    asked = {"model": "scenes", "question": "What colour is the circle?"}
    both = [results(remote, "vqa", "exact", **asked) for remote in (on_gpu[1], on_cpu)]
    for found, wanted in zip(*both, strict=True):
        scores = {one["answer"]: one["score"] for one in wanted["answers"]}
        likeliest = found["answers"][0]
        assert likeliest["score"] == pytest.approx(scores[likeliest["answer"]], abs=1e-3)


def test_many_at_once_share_runs(on_gpu: tuple[Core, Remote]) -> None:
    _, remote = on_gpu
    levels = ["exact", "balanced", "fast"]
    with ThreadPoolExecutor(32) as pool:
        futures = [
            pool.submit(results, remote, "classify", levels[at % 3], model="cifar10")
            for at in range(96)
        ]
        found = [future.result() for future in futures]
    # How many wait depends on how fast the GPU is; those of one request do at least.
    assert max(one["batch_size"] for answer in found for one in answer) > 1
    first = [one["predictions"][0]["label"] for one in found[0]]
    for answer in found[::3]:
        assert [one["predictions"][0]["label"] for one in answer] == first


def test_gpus_are_watched(on_gpu: tuple[Core, Remote]) -> None:
    pytest.importorskip("pynvml")
    _, remote = on_gpu
    memory = {kind: {"gpu": "0", "kind": kind} for kind in ("used", "total")}
    used, total = (
        remote.sample("tokenfold_gpu_memory_bytes", **memory[kind]) for kind in ("used", "total")
    )
    assert 0 < used <= total
    assert "tokenfold_gpu_utilization_ratio{" in remote.get("/metrics").text


def test_a_session_that_is_gone_loses_no_request(tmp_path: Path) -> None:
    app = server(tmp_path, "auto")
    with serving(app, patience=PATIENCE) as remote, ThreadPoolExecutor(16) as pool:
        model = app.state.core.catalog.get("cifar10")
        futures = [
            pool.submit(results, remote, "classify", "balanced", model="cifar10") for _ in range(40)
        ]
        model.backend._current.close()
        for future in futures:
            assert len(future.result()) == len(PHOTOS)
        until(lambda: model.backend.kind.name == "cpu")
        failed = {"model": "cifar10", "backend": "cuda"}
        assert remote.sample("tokenfold_backend_failures_total", **failed) == 1
        # The others stay where they are.
        assert app.state.core.catalog.get("scenes").backend.kind is CUDA


@pytest.mark.skipif(engines.MISSING is not None, reason=str(engines.MISSING))
@pytest.mark.timeout(1800)
def test_engines_are_built_while_cuda_answers_and_are_there_the_next_time(
    tmp_path: Path, on_cpu: Remote
) -> None:
    kinds = all_kinds(tmp_path / "engines")
    on_gpu = {"cifar10", "scenes"}  # the others are int8
    with serving(server(tmp_path, "auto", kinds), patience=PATIENCE) as remote:
        while True:
            answers = results(remote, "classify", "exact", model="cifar10")
            assert len(answers) == len(PHOTOS)
            states = {
                one["model"]: one["state"] for one in remote.get("/startupz").json()["engines"]
            }
            assert set(states) == on_gpu
            assert "failed" not in states.values()
            if set(states.values()) == {"serving"}:
                break
    with serving(server(tmp_path, "auto", kinds), patience=PATIENCE) as remote:
        assert "engines" not in remote.get("/startupz").json()
        for model in remote.get("/v1/models").json()["models"]:
            assert model["backend"] == ("tensorrt" if model["name"] in on_gpu else "cpu")
        both = (results(one, "classify", "exact", model="cifar10") for one in (remote, on_cpu))
        for found, wanted in zip(*both, strict=True):
            best, same = found["predictions"][0], wanted["predictions"][0]
            assert best["label"] == same["label"]
            assert best["score"] == pytest.approx(same["score"], abs=1e-3)
