"""Tests of `tokenfold serve` as a process: signals, logs, imports and the command line."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from tests.service.standin import Remote, bundle, picture, process, until
from tokenfold import cli


def run(*line: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *line], capture_output=True, text=True, timeout=60)


@pytest.fixture(scope="module")
def slow(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle whose runs take a few tenths of a second."""
    return bundle(tmp_path_factory.mktemp("slow") / "a", work=400)


def test_sigterm_answers_accepted_requests(slow: Path) -> None:
    with (
        process(slow, workers=1) as (running, remote),
        ThreadPoolExecutor(8) as pool,
        Remote(remote.url) as second_client,
    ):
        second_client.get("/livez")
        futures = [pool.submit(remote.classify, picture()) for _ in range(4)]
        until(lambda: remote.sample("tokenfold_queue_depth") >= 3)
        running.send_signal(signal.SIGTERM)
        until(lambda: second_client.get("/readyz").status_code == 503)
        # New requests are refused while accepted ones are being answered.
        refused = second_client.classify(picture())
        assert refused.status_code == 503
        assert refused.json()["type"] == "urn:tokenfold:problem:draining"
        assert int(refused.headers["retry-after"]) >= 1
        assert second_client.get("/livez").status_code == 200
        assert [future.result().status_code for future in futures] == [200] * 4
        assert running.wait(10) == 0


def test_sigterm_ends_an_idle_server_soon(slow: Path) -> None:
    with process(slow) as (running, remote):
        # An idle connection does not delay the shutdown.
        port = int(remote.url.rpartition(":")[2])
        with socket.create_connection(("127.0.0.1", port)):
            begun = time.monotonic()
            running.send_signal(signal.SIGTERM)
            assert running.wait(10) == 0
            assert time.monotonic() - begun < 5


def test_a_second_signal_ends_the_server_at_once(slow: Path) -> None:
    with process(slow, workers=1) as (running, remote), ThreadPoolExecutor(8) as pool:
        futures = [pool.submit(remote.classify, picture()) for _ in range(8)]
        until(lambda: remote.sample("tokenfold_queue_depth") >= 6)
        running.send_signal(signal.SIGINT)
        until(lambda: remote.get("/readyz").status_code == 503)
        running.send_signal(signal.SIGINT)
        assert running.wait(10) == 0
        for future in futures:
            if future.exception() is None:
                assert future.result().status_code in (200, 503)
            else:
                assert isinstance(future.exception(), httpx.TransportError)
    assert "Traceback" not in "".join(remote.log)  # type: ignore[attr-defined]


def test_a_drain_ends_at_its_timeout(slow: Path) -> None:
    with (
        process(slow, workers=1, drain_timeout=1) as (running, remote),
        ThreadPoolExecutor(32) as pool,
    ):
        for _ in range(30):
            pool.submit(remote.classify, picture())
        until(lambda: remote.sample("tokenfold_queue_depth") >= 20)
        begun = time.monotonic()
        running.send_signal(signal.SIGTERM)
        assert running.wait(20) == 0
        assert time.monotonic() - begun < 10
    assert "Traceback" not in "".join(remote.log)  # type: ignore[attr-defined]


def test_logs_are_json_with_the_request_id(slow: Path) -> None:
    with process(slow) as (running, remote):
        remote.classify(b"bad", headers={"X-Request-ID": "find-me"})
        running.send_signal(signal.SIGTERM)
        running.wait(10)
    lines = [json.loads(line) for line in remote.log]  # type: ignore[attr-defined]
    assert all({"time", "level", "logger", "message"} <= set(line) for line in lines)
    (access,) = [line for line in lines if line.get("request_id") == "find-me"]
    assert access["message"] == "POST /v1/classify"
    assert access["status"] == 415
    (loaded,) = [line for line in lines if line["message"] == "loaded colours"]
    assert set(loaded["levels_ms"]) == {"exact", "balanced", "fast"}


def test_a_port_in_use_is_reported(slow: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        completed = run("-m", "tokenfold", "serve", f"--bundles={slow}", f"--port={port}")
    assert completed.returncode == 1, completed.stderr
    assert completed.stderr.count("address already in use") == 1
    assert "Traceback" not in completed.stderr
    assert "terminate called" not in completed.stderr
    assert "CRITICAL" not in completed.stderr.upper()


def test_sigterm_while_loading_ends_cleanly(tmp_path: Path) -> None:
    # Each of the dozen runs of the warm-up takes a few tenths of a second.
    bundle(tmp_path / "a", work=400)
    line = [sys.executable, "-m", "tokenfold", "serve", f"--bundles={tmp_path}", "--port=0"]
    with subprocess.Popen([*line, "--workers=1"], stderr=subprocess.PIPE, text=True) as running:
        assert running.stderr is not None
        logged = []
        for row in running.stderr:
            logged.append(row)
            if "running on http" in row:
                running.send_signal(signal.SIGTERM)
                break
        logged += running.stderr
        assert running.wait(20) == 0, "".join(logged)
    text = "".join(logged)
    assert "loading given up" in text
    assert "Traceback" not in text
    assert "CRITICAL" not in text.upper()


def test_a_damaged_bundle_is_reported(tmp_path: Path) -> None:
    folder = bundle(tmp_path / "a")
    (folder / "model.onnx").write_bytes(b"no graph")
    completed = run("-m", "tokenfold", "serve", f"--bundles={tmp_path}")
    assert completed.returncode == 1
    assert "model.onnx" in completed.stderr
    assert "Traceback" not in completed.stderr


def test_a_bundle_that_cannot_be_loaded_ends_the_server(tmp_path: Path) -> None:
    bundle(tmp_path / "a", labels=("red", "green"))
    completed = run("-m", "tokenfold", "serve", f"--bundles={tmp_path}", "--port=0")
    assert completed.returncode == 1
    assert "3 outputs and 2 labels" in completed.stderr


def test_serving_imports_no_torch() -> None:
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "import pkgutil, importlib\n"
        "from tokenfold import service\n"
        "for module in pkgutil.walk_packages(service.__path__, 'tokenfold.service.'):\n"
        "    importlib.import_module(module.name)\n"
        "heavy = {'torch', 'onnx', 'onnxscript', 'transformers', 'safetensors'}\n"
        "print(sorted(name for name in heavy if sys.modules.get(name)))\n"
    )
    completed = run("-c", code)
    assert completed.returncode == 0, completed.stderr
    assert completed.stdout.strip() == "[]"


class TestCommandLine:
    def test_help_lists_the_commands(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert cli.main(["--help"]) == 0
        assert "serve" in capsys.readouterr().out
        assert cli.main([]) == 2
        assert "usage" in capsys.readouterr().err

    def test_version_is_printed(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert cli.main(["--version"]) == 0
        assert capsys.readouterr().out.startswith("tokenfold ")

    def test_an_unknown_command_is_named(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert cli.main(["sevre"]) == 2
        assert "'sevre'" in capsys.readouterr().err

    def test_export_without_torch_names_the_extra_to_install(self) -> None:
        # A module that is None in sys.modules raises the same error as one that is not installed.
        code = (
            "import sys; sys.modules['torch'] = None\n"
            "from tokenfold import cli\n"
            "sys.exit(cli.main(['export', 'random:vit-ti16', '--out', 'x']))"
        )
        completed = run("-c", code)
        assert completed.returncode == 1
        assert "needs torch" in completed.stderr
        assert "tokenfold[export]" in completed.stderr

    def test_every_command_has_help(self) -> None:
        for name in ("serve", "export", "bench", "ingest"):
            completed = run("-m", "tokenfold", name, "--help")
            assert completed.returncode == 0, completed.stderr
            assert f"tokenfold {name}" in completed.stdout
