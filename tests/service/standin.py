"""A stand-in bundle and servers on it: small, real, and without torch.

Its network names the strongest colour of an image, and takes longer the fewer tokens are merged.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from datetime import date
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import onnx
import uvicorn
from fastapi import FastAPI
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

from tokenfold.bundle.manifest import MODEL, Level, Manifest
from tokenfold.bundle.preprocess import Preprocess
from tokenfold.bundle.profile import PROFILE, Latency, LevelProfile, Profile, Quality
from tokenfold.bundle.schedule import flops_ratio, plan_for
from tokenfold.bundle.workload import Workload
from tokenfold.bundle.writing import stored_files, write_manifest, writing
from tokenfold.service.settings import Settings

DATA = ".galleries"  # beside the bundles
ENGINES = ".engines"
PROBLEM = "application/problem+json"
LABELS = ("red", "green", "blue")
SIDE = 16
WORKLOAD = Workload(
    method="tome",
    tokens=17,
    protected=1,
    depth=4,
    dim=32,
    mlp_dim=64,
    metric_dim=16,
    stem=0,
    head=0,
)
REDUCTIONS = {"exact": 0.0, "balanced": 0.3, "fast": 0.6}
ACCURACY = {"exact": 0.9, "balanced": 0.88, "fast": 0.75}


def bundle(
    out: Path,
    *,
    name: str = "colours",
    work: int = 0,
    profile: bool = True,
    labels: Sequence[str] = LABELS,
    levels: Mapping[str, float] = REDUCTIONS,
) -> Path:
    """Write the bundle.

    Args:
        work: products of 256 x 256 matrices in an unreduced run, about 1 ms each; in proportion
            fewer in a reduced one.
    """
    plans = {level: plan_for(WORKLOAD, share) for level, share in levels.items()}
    with writing(out) as folder:
        onnx.save(_graph(work), folder / MODEL)
        if profile:
            (folder / PROFILE).write_text(_profile(levels).model_dump_json())
        write_manifest(
            folder,
            Manifest(
                name=name,
                source="tests",
                precision="fp32",
                workload=WORKLOAD,
                preprocess=Preprocess(size=(SIDE, SIDE)),
                tasks={"classify": tuple(labels)},
                levels={
                    level: Level(
                        reduction=share,
                        plan=plans[level],
                        flops_ratio=flops_ratio(WORKLOAD, plans[level]),
                        tokens_out=WORKLOAD.widths(plans[level])[-1],
                    )
                    for level, share in levels.items()
                },
                default_level=next(iter(levels)),
                versions={"onnx": onnx.__version__},
                files=stored_files(folder),
            ),
        )
    return out


def _profile(levels: Mapping[str, float]) -> Profile:
    return Profile(
        measured=date(2026, 1, 1),
        machine="none",
        runtime="none",
        levels={
            level: LevelProfile(
                quality={
                    "classify": Quality(
                        metric="top1", value=ACCURACY[level], low=0.0, high=1.0, samples=100
                    )
                },
                latency=(Latency(batch=1, p50_ms=1000.0, p99_ms=2000.0),),
            )
            for level in levels
        },
    )


def _graph(work: int) -> onnx.ModelProto:
    def constant(name: str, value: Any, dtype: Any) -> onnx.TensorProto:
        return numpy_helper.from_array(np.asarray(value, dtype=dtype), name)

    body = helper.make_graph(
        [
            helper.make_node("Identity", ["going_in"], ["going_out"]),
            helper.make_node("MatMul", ["state_in", "turn"], ["state_out"]),
        ],
        "work",
        [
            helper.make_tensor_value_info("i", TensorProto.INT64, []),
            helper.make_tensor_value_info("going_in", TensorProto.BOOL, []),
            helper.make_tensor_value_info("state_in", TensorProto.FLOAT, [256, 256]),
        ],
        [
            helper.make_tensor_value_info("going_out", TensorProto.BOOL, []),
            helper.make_tensor_value_info("state_out", TensorProto.FLOAT, [256, 256]),
        ],
    )
    node = helper.make_node
    nodes = [
        node("Cast", ["image"], ["pixels"], to=TensorProto.FLOAT),
        node("ReduceMean", ["pixels", "sides"], ["means"], keepdims=0),
        node("Div", ["means", "scale"], ["scaled"]),
        # left = tokens - sum(plan); slots: the first `left` tokens stay, the others join the first
        node("ReduceSum", ["plan"], ["removed"], keepdims=0),
        node("Sub", ["tokens", "removed"], ["left"]),
        node("Range", ["zero", "tokens", "one"], ["positions"]),
        node("Less", ["positions", "left"], ["kept"]),
        node("Where", ["kept", "positions", "zero"], ["row"]),
        node("Shape", ["image"], ["batch"], start=0, end=1),
        node("Concat", ["batch", "tokens_1d"], ["table"], axis=0),
        node("Expand", ["row", "table"], ["slots"]),
        # The work, whose result changes nothing.
        node("Mul", ["left", "work"], ["much"]),
        node("Div", ["much", "tokens"], ["trips"]),
        node("Loop", ["trips", "going", "identity"], ["worked"], body=body),
        node("ReduceMax", ["worked"], ["most"], keepdims=0),
        node("Mul", ["most", "nothing"], ["no_change"]),
        node("Add", ["scaled", "no_change"], ["logits"]),
    ]
    graph = helper.make_graph(
        nodes,
        "colours",
        [
            helper.make_tensor_value_info("image", TensorProto.UINT8, ["batch", SIDE, SIDE, 3]),
            helper.make_tensor_value_info("plan", TensorProto.INT64, [WORKLOAD.depth]),
        ],
        [
            helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 3]),
            helper.make_tensor_value_info("slots", TensorProto.INT64, ["batch", WORKLOAD.tokens]),
        ],
        [
            constant("sides", [1, 2], np.int64),
            constant("scale", 25.0, np.float32),
            constant("tokens", WORKLOAD.tokens, np.int64),
            constant("tokens_1d", [WORKLOAD.tokens], np.int64),
            constant("zero", 0, np.int64),
            constant("one", 1, np.int64),
            constant("work", work, np.int64),
            constant("going", True, np.bool_),
            constant("identity", np.eye(256), np.float32),
            constant("turn", np.eye(256), np.float32),
            constant("nothing", 0.0, np.float32),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    onnx.checker.check_model(model)
    return model


def picture(colour: str = "red", size: tuple[int, int] = (40, 30), style: str = "PNG") -> bytes:
    """An encoded image of one colour."""
    return encoded(Image.new("RGB", size, colour), style)


def encoded(image: Image.Image, style: str = "PNG", **options: Any) -> bytes:
    """An image as a file's bytes."""
    file = io.BytesIO()
    image.save(file, style, **options)
    return file.getvalue()


def settings(bundles: Path, **changes: Any) -> Settings:
    """Settings for a server in a test."""
    given = {"workers": 2, "decoders": 2, "log_level": "error", "port": 0} | changes
    given.setdefault("data_dir", str(bundles / DATA))
    given.setdefault("engines", bundles / ENGINES)
    # Without the environment of whoever runs the tests.
    return Settings.model_validate({"bundles": bundles, **given})


class Remote(httpx.Client):
    """A client of one server."""

    def __init__(self, url: str) -> None:
        super().__init__(base_url=url, timeout=30.0, limits=httpx.Limits(max_connections=None))
        self.url = url

    def classify(
        self, *images: bytes, headers: Mapping[str, str] | None = None, **fields: Any
    ) -> httpx.Response:
        """POST a form of images without texts."""
        return self.ask("classify", *images, headers=headers, **fields)

    def ask(
        self, task: str, *images: bytes, headers: Mapping[str, str] | None = None, **fields: Any
    ) -> httpx.Response:
        """POST a form to a task's route."""
        files = [("image", (f"{i}.png", data)) for i, data in enumerate(images)]
        return self.post(f"/v1/{task}", files=files, data=fields, headers=dict(headers or {}))

    def sample(self, name: str, **labels: str) -> float:
        """A metric's value; 0 where there is none."""
        for line in self.get("/metrics").text.splitlines():
            match = re.fullmatch(r"(\w+)(?:\{(.*)\})? (\S+)", line)
            if match and match[1] == name:
                found = dict(re.findall(r'(\w+)="([^"]*)"', match[2] or ""))
                if found == labels:
                    return float(match[3])
        return 0.0

    def wait_ready(self, seconds: float = 20.0) -> None:
        """Until the server takes requests."""
        until(lambda: self._answers("/readyz"), seconds)

    def _answers(self, path: str) -> bool:
        with contextlib.suppress(httpx.TransportError):
            return self.get(path).status_code == 200
        return False


def problem(response: httpx.Response, status: int, slug: str) -> str:
    """Check an error and return its detail."""
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == PROBLEM
    found = response.json()
    assert found["type"] == f"urn:tokenfold:problem:{slug}"
    assert found["status"] == status
    assert found["title"]
    return str(found["detail"])


def until(condition: Any, seconds: float = 10.0) -> None:
    """Wait for something to become true."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it never happened"
        time.sleep(0.01)


@contextlib.contextmanager
def serving(app: FastAPI, *, patience: float = 10.0, **options: Any) -> Iterator[Remote]:
    """Serve an app from a thread of this process, on a free port.

    Args:
        patience: seconds to wait until the models are loaded.
        options: for uvicorn.
    """
    options = {"log_config": None, "ws": "none", "timeout_graceful_shutdown": 5} | options
    config = uvicorn.Config(app, port=0, **options)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        until(lambda: server.started or not thread.is_alive())
        port = app.state.port = server.servers[0].sockets[0].getsockname()[1]
        with Remote(f"http://127.0.0.1:{port}") as client:
            until(lambda: app.state.core.started or app.state.core.failed, patience)
            yield client
    finally:
        server.should_exit = True
        thread.join()


@contextlib.contextmanager
def process(bundles: Path, **changes: Any) -> Iterator[tuple[subprocess.Popen[str], Remote]]:
    """`tokenfold serve` in a process of its own, on a free port, when it is ready."""
    flags = {"workers": 2, "decoders": 2, "port": 0} | changes
    flags = {"data_dir": bundles / DATA, "engines": bundles / ENGINES} | flags
    line = [sys.executable, "-m", "tokenfold", "serve", "--bundles", str(bundles)]
    line += [f"--{name.replace('_', '-')}={value}" for name, value in flags.items()]
    with subprocess.Popen(
        line, stderr=subprocess.PIPE, text=True, env={**os.environ, "PYTHONUNBUFFERED": "1"}
    ) as running:
        assert running.stderr is not None
        logged: list[str] = []
        port = None
        for row in running.stderr:
            logged.append(row)
            if match := re.search(r"running on http://[^:]+:(\d+)", row):
                port = match[1]
                break
        assert port, "".join(logged)
        reader = threading.Thread(target=lambda: logged.extend(running.stderr or ()))
        reader.start()
        try:
            with Remote(f"http://127.0.0.1:{port}") as client:
                client.wait_ready()
                client.log = logged  # type: ignore[attr-defined]
                yield running, client
        finally:
            if running.poll() is None:
                running.kill()
            running.wait()
            reader.join()
