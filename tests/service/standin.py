"""Stand-in classifier bundle, and servers that serve it, without torch.

The network classifies an image by its strongest colour; the fewer tokens are merged, the longer
a run takes.
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

DATA = ".galleries"  # in the folder of the bundles
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
        work: number of 256 x 256 matrix products in an unreduced run, about 1 ms each; reduced
            runs have proportionally fewer.
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
        # left = tokens - sum(plan); slots: `left` tokens stay, the others merge into the first one
        node("ReduceSum", ["plan"], ["removed"], keepdims=0),
        node("Sub", ["tokens", "removed"], ["left"]),
        node("Range", ["zero", "tokens", "one"], ["positions"]),
        node("Less", ["positions", "left"], ["kept"]),
        node("Where", ["kept", "positions", "zero"], ["row"]),
        node("Shape", ["image"], ["batch"], start=0, end=1),
        node("Concat", ["batch", "tokens_1d"], ["table"], axis=0),
        node("Expand", ["row", "table"], ["slots"]),
        # Work whose result does not change the logits.
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
    """Return an encoded image of one colour."""
    return encoded(Image.new("RGB", size, colour), style)


def encoded(image: Image.Image, style: str = "PNG", **options: Any) -> bytes:
    """Encode an image as the bytes of a file."""
    file = io.BytesIO()
    image.save(file, style, **options)
    return file.getvalue()


def settings(bundles: Path, **changes: Any) -> Settings:
    """Return settings for a server in a test."""
    fields = {"workers": 2, "decoders": 2, "log_level": "error", "port": 0} | changes
    fields.setdefault("data_dir", str(bundles / DATA))
    fields.setdefault("engines", bundles / ENGINES)
    # These values take precedence over the user's environment variables.
    return Settings.model_validate({"bundles": bundles, **fields})


class Remote(httpx.Client):
    """HTTP client of one server."""

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
        """Return the value of a metric; 0 if it is missing."""
        for line in self.get("/metrics").text.splitlines():
            match = re.fullmatch(r"(\w+)(?:\{(.*)\})? (\S+)", line)
            if match and match[1] == name:
                sample_labels = dict(re.findall(r'(\w+)="([^"]*)"', match[2] or ""))
                if sample_labels == labels:
                    return float(match[3])
        return 0.0

    def wait_ready(self, seconds: float = 20.0) -> None:
        """Wait until the server is ready."""
        until(lambda: self._answers("/readyz"), seconds)

    def _answers(self, path: str) -> bool:
        with contextlib.suppress(httpx.TransportError):
            return self.get(path).status_code == 200
        return False


def problem(response: httpx.Response, status: int, slug: str) -> str:
    """Check that a response is a problem of the given status and slug; return its detail."""
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == PROBLEM
    body = response.json()
    assert body["type"] == f"urn:tokenfold:problem:{slug}"
    assert body["status"] == status
    assert body["title"]
    return str(body["detail"])


def until(condition: Any, seconds: float = 10.0) -> None:
    """Wait until a condition is true; fail after `seconds`."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"the condition was not met within {seconds:g} s"
        time.sleep(0.01)


@contextlib.contextmanager
def serving(app: FastAPI, *, patience: float = 10.0, **options: Any) -> Iterator[Remote]:
    """Serve an app from a thread of this process, on a free port.

    Args:
        patience: maximum seconds until the models are loaded.
        options: options of uvicorn.
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
    """Run `tokenfold serve` in a separate process on a free port; yields when it is ready."""
    flags = {"workers": 2, "decoders": 2, "port": 0} | changes
    flags = {"data_dir": bundles / DATA, "engines": bundles / ENGINES} | flags
    command = [sys.executable, "-m", "tokenfold", "serve", "--bundles", str(bundles)]
    command += [f"--{name.replace('_', '-')}={value}" for name, value in flags.items()]
    with subprocess.Popen(
        command, stderr=subprocess.PIPE, text=True, env={**os.environ, "PYTHONUNBUFFERED": "1"}
    ) as running:
        assert running.stderr is not None
        log_lines: list[str] = []
        port = None
        for line in running.stderr:
            log_lines.append(line)
            if match := re.search(r"running on http://[^:]+:(\d+)", line):
                port = match[1]
                break
        assert port, "".join(log_lines)
        reader = threading.Thread(target=lambda: log_lines.extend(running.stderr or ()))
        reader.start()
        try:
            with Remote(f"http://127.0.0.1:{port}") as client:
                client.wait_ready()
                client.log = log_lines  # type: ignore[attr-defined]
                yield running, client
        finally:
            if running.poll() is None:
                running.kill()
            running.wait()
            reader.join()
