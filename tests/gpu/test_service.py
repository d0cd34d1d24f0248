"""Tests of the service on a GPU: answers equal the CPU's, in batches, after a failure, and while
TensorRT engines are built.
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

# Timeout in seconds for loading, testing and recording all models.
START_TIMEOUT = 120.0

PHOTOS = [jpeg(synthetic(64, 64, seed)) for seed in range(8)]


def server(root: Path, backend: str, kinds: Sequence[BackendKind] = (CUDA, CPU)) -> Any:
    settings = standin.settings(
        DEMO, backend=backend, workers=None, data_dir=str(root / backend), engines=root / "engines"
    )
    return create_app(settings, kinds=kinds)


@pytest.fixture(scope="module")
def on_gpu(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Core, Remote]]:
    app = server(tmp_path_factory.mktemp("gpu"), "auto")
    with serving(app, patience=START_TIMEOUT) as remote:
        assert app.state.core.failed is None
        yield app.state.core, remote


@pytest.fixture(scope="module")
def on_cpu(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Remote]:
    app = server(tmp_path_factory.mktemp("cpu"), "cpu")
    with serving(app, patience=START_TIMEOUT) as remote:
        yield remote


def results(remote: Remote, task: str, level: str, **fields: Any) -> list[dict[str, Any]]:
    response = remote.ask(task, *PHOTOS, level=level, **fields)
    assert response.status_code == 200, response.text
    items: list[dict[str, Any]] = response.json()["results"]
    return items


def test_int8_models_run_on_the_cpu_and_others_on_the_gpu(on_gpu: tuple[Core, Remote]) -> None:
    core, remote = on_gpu
    for model in remote.get("/v1/models").json()["models"]:
        expected = "cpu" if model["precision"] == "int8" else "cuda"
        assert (model["name"], model["backend"]) == (model["name"], expected)
        assert model["native_ops"]
    for model in core.catalog:
        labels = {"model": model.name, "backend": "cuda"}
        assert remote.sample("tokenfold_backend_failures_total", **labels) == 0
        if model.backend.kind is CUDA:
            peak = {"model": model.name, "kind": "gpu_peak"}
            assert remote.sample("tokenfold_model_memory_bytes", **peak) > 0


def test_classifications_equal_the_cpus(on_gpu: tuple[Core, Remote], on_cpu: Remote) -> None:
    for level in ("exact", "high"):
        both = (
            results(remote, "classify", level, model="cifar10", top_k=10)
            for remote in (on_gpu[1], on_cpu)
        )
        for gpu_result, cpu_result in zip(*both, strict=True):
            scores = {item["label"]: item["score"] for item in cpu_result["predictions"]}
            for item in gpu_result["predictions"]:
                # Near ties between tokens may be merged differently.
                tolerance = 1e-4 if level == "exact" else 0.1
                assert item["score"] == pytest.approx(scores[item["label"]], abs=tolerance)


def test_answers_equal_the_cpus(on_gpu: tuple[Core, Remote], on_cpu: Remote) -> None:
    fields = {"model": "scenes", "question": "What colour is the circle?"}
    both = [results(remote, "vqa", "exact", **fields) for remote in (on_gpu[1], on_cpu)]
    for gpu_result, cpu_result in zip(*both, strict=True):
        scores = {item["answer"]: item["score"] for item in cpu_result["answers"]}
        likeliest = gpu_result["answers"][0]
        assert likeliest["score"] == pytest.approx(scores[likeliest["answer"]], abs=1e-3)


def test_concurrent_requests_share_runs(on_gpu: tuple[Core, Remote]) -> None:
    _, remote = on_gpu
    levels = ["exact", "balanced", "fast"]
    with ThreadPoolExecutor(32) as pool:
        futures = [
            pool.submit(results, remote, "classify", levels[index % 3], model="cifar10")
            for index in range(96)
        ]
        answers = [future.result() for future in futures]
    # The GPU's speed decides how many requests wait; at least the items of one request share a run.
    assert max(item["batch_size"] for answer in answers for item in answer) > 1
    first = [item["predictions"][0]["label"] for item in answers[0]]
    for answer in answers[::3]:
        assert [item["predictions"][0]["label"] for item in answer] == first


def test_gpu_metrics(on_gpu: tuple[Core, Remote]) -> None:
    pytest.importorskip("pynvml")
    _, remote = on_gpu
    memory = {kind: {"gpu": "0", "kind": kind} for kind in ("used", "total")}
    used, total = (
        remote.sample("tokenfold_gpu_memory_bytes", **memory[kind]) for kind in ("used", "total")
    )
    assert 0 < used <= total
    assert "tokenfold_gpu_utilization_ratio{" in remote.get("/metrics").text


def test_a_closed_session_loses_no_request(tmp_path: Path) -> None:
    app = server(tmp_path, "auto")
    with serving(app, patience=START_TIMEOUT) as remote, ThreadPoolExecutor(16) as pool:
        model = app.state.core.catalog.get("cifar10")
        futures = [
            pool.submit(results, remote, "classify", "balanced", model="cifar10") for _ in range(40)
        ]
        model.backend._current.close()
        for future in futures:
            assert len(future.result()) == len(PHOTOS)
        until(lambda: model.backend.kind.name == "cpu")
        labels = {"model": "cifar10", "backend": "cuda"}
        assert remote.sample("tokenfold_backend_failures_total", **labels) == 1
        # Other models stay on the GPU.
        assert app.state.core.catalog.get("scenes").backend.kind is CUDA


@pytest.mark.skipif(engines.MISSING is not None, reason=str(engines.MISSING))
@pytest.mark.timeout(1800)
def test_engines_are_built_in_the_background_and_used_after_a_restart(
    tmp_path: Path, on_cpu: Remote
) -> None:
    kinds = all_kinds(tmp_path / "engines")
    on_gpu = {"cifar10", "scenes"}  # The other models are int8.
    with serving(server(tmp_path, "auto", kinds), patience=START_TIMEOUT) as remote:
        while True:
            answers = results(remote, "classify", "exact", model="cifar10")
            assert len(answers) == len(PHOTOS)
            states = {
                engine["model"]: engine["state"]
                for engine in remote.get("/startupz").json()["engines"]
            }
            assert set(states) == on_gpu
            assert "failed" not in states.values()
            if set(states.values()) == {"serving"}:
                break
    with serving(server(tmp_path, "auto", kinds), patience=START_TIMEOUT) as remote:
        assert "engines" not in remote.get("/startupz").json()
        for model in remote.get("/v1/models").json()["models"]:
            assert model["backend"] == ("tensorrt" if model["name"] in on_gpu else "cpu")
        both = (results(host, "classify", "exact", model="cifar10") for host in (remote, on_cpu))
        for gpu_result, cpu_result in zip(*both, strict=True):
            gpu_best, cpu_best = gpu_result["predictions"][0], cpu_result["predictions"][0]
            assert gpu_best["label"] == cpu_best["label"]
            assert gpu_best["score"] == pytest.approx(cpu_best["score"], abs=1e-3)
