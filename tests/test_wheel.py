"""The wheel and the sdist: their contents and tags, and a server installed from the wheel."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path
from typing import NamedTuple

import httpx
import pytest
from packaging.utils import parse_wheel_filename

from load_tests.client import Client, post
from load_tests.images import jpeg, synthetic
from load_tests.server import serving

TOP = Path(__file__).parents[1]
MEBIBYTE = 2**20

# What make sets for the programs that it starts; nested makes must not inherit it.
MAKE_VARIABLES = {"MAKEFLAGS", "MFLAGS", "MAKELEVEL", "MAKEOVERRIDES"}

LIBRARY = "tokenfold/runtime/native/libtokenfold_ort.so"

pytestmark = [pytest.mark.more, pytest.mark.timeout(1200)]


class Packages(NamedTuple):
    """The wheel and the sdist that `make wheel` builds."""

    wheel: Path
    sdist: Path

    def wheel_files(self) -> dict[str, int]:
        """Return the wheel's files and their compressed sizes in bytes."""
        with zipfile.ZipFile(self.wheel) as archive:
            return {entry.filename: entry.compress_size for entry in archive.infolist()}

    def sdist_files(self) -> set[str]:
        """Return the sdist's files, relative to its folder."""
        with tarfile.open(self.sdist) as archive:
            return {member.name.partition("/")[2] for member in archive if member.isfile()}


def environment(**variables: str) -> dict[str, str]:
    """Return this process's environment without make's variables and without this checkout."""
    omitted = MAKE_VARIABLES | {"PYTHONPATH"}
    kept = {name: value for name, value in os.environ.items() if name not in omitted}
    return {**kept, **variables}


def check_run(*command: str | Path, cwd: Path = TOP, env: Mapping[str, str] | None = None) -> str:
    """Run a command and return its output; fail the test with the output if the command fails."""
    done = subprocess.run(
        command, cwd=cwd, env=env or environment(), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]
    return done.stdout + done.stderr


@pytest.fixture(scope="module")
def packages(tmp_path_factory: pytest.TempPathFactory) -> Packages:
    folder = tmp_path_factory.mktemp("dist")
    programs = Path(sys.executable).parent
    # The environment that runs this test is installed already.
    options = ("--assume-old", ".venv-test/.installed", f"test_bin={programs}", f"dist={folder}")
    check_run("make", "wheel", *options)
    (wheel,) = folder.glob("*.whl")
    (sdist,) = folder.glob("*.tar.gz")
    return Packages(wheel, sdist)


@pytest.fixture(scope="module")
def installed(packages: Packages, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The programs of a fresh environment with `tokenfold[cpu]`, outside the checkout."""
    folder = tmp_path_factory.mktemp("installed") / "venv"
    check_run(sys.executable, "-m", "venv", folder)
    constraints = TOP / "requirements" / "constraints.txt"
    pip = (folder / "bin" / "python", "-m", "pip", "install", "--quiet")
    check_run(*pip, "-c", constraints, f"{packages.wheel}[cpu]", cwd=folder)
    return folder / "bin"


class TestContents:
    """Contents of the wheel and the sdist."""

    def test_the_wheel_fits_any_python_on_older_systems(self, packages: Packages) -> None:
        _, _, _, tags = parse_wheel_filename(packages.wheel.name)
        machine = os.uname().machine
        glibc = []
        for tag in tags:
            assert (tag.interpreter, tag.abi) == ("py3", "none")
            numbers = re.fullmatch(rf"manylinux_2_(\d+)_{machine}|manylinux\d+_\w+", tag.platform)
            assert numbers is not None, tag
            glibc += [int(numbers[1])] if numbers[1] else []
        assert min(glibc) <= 28

    def test_auditwheel_agrees(self, packages: Packages) -> None:
        shown = check_run(sys.executable, "-m", "auditwheel", "show", packages.wheel)
        tags = re.findall(r"manylinux_2_(\d+)", " ".join(shown.split()))
        assert tags
        assert all(int(tag) <= 28 for tag in tags)

    def test_the_wheel_has_the_ops_the_page_and_the_models(self, packages: Packages) -> None:
        files = set(packages.wheel_files())
        assert {
            LIBRARY,
            "tokenfold/py.typed",
            "tokenfold/export/cli.py",
            "tokenfold/models/demo/bundles/cifar10-int8/manifest.json",
            "tokenfold/service/page/index.html",
        } <= files
        assert {file.partition("/")[0] for file in files} == {
            "tokenfold",
            *{file.partition("/")[0] for file in files if ".dist-info/" in file},
        }
        (entry_points,) = [file for file in files if file.endswith("entry_points.txt")]
        with zipfile.ZipFile(packages.wheel) as archive:
            assert "tokenfold = tokenfold.cli:main" in archive.read(entry_points).decode()

    @pytest.mark.parametrize(
        "pattern",
        [
            r"checkpoints/.*\.safetensors",
            r"(^|/)tests/",
            r"\.pyc$",
            r"\.npz$",
            r"_(cuda|tensorrt)\.so",
        ],
    )
    def test_neither_contains_development_files(self, packages: Packages, pattern: str) -> None:
        for files in (packages.wheel_files(), packages.sdist_files()):
            assert [file for file in files if re.search(pattern, file)] == []

    def test_the_wheel_is_small(self, packages: Packages) -> None:
        sizes = packages.wheel_files()
        bundles = sum(size for file, size in sizes.items() if "/demo/bundles/" in file)
        assert sum(sizes.values()) - bundles < 25 * MEBIBYTE
        # The wheel with the built-in bundles, which `tokenfold serve` serves by default.
        assert sum(sizes.values()) < 25 * MEBIBYTE

    def test_both_have_the_licences(self, packages: Packages) -> None:
        for files in (set(packages.wheel_files()), packages.sdist_files()):
            for name in ("LICENSE", "NOTICE", "native/third_party/onnxruntime/LICENSE"):
                assert any(file.endswith(name) for file in files), name

    def test_the_sdist_has_what_the_wheel_is_built_from(self, packages: Packages) -> None:
        # `make wheel` builds the wheel from the sdist.
        files = packages.sdist_files()
        assert {
            "pyproject.toml",
            "native/onnxruntime/ops.cc",
            "native/third_party/onnxruntime/include/onnxruntime_cxx_api.h",
            "tokenfold/service/page/index.html",
        } <= files
        assert not [file for file in files if file.endswith(".so")]


class TestInstalled:
    """The wheel in a fresh environment."""

    def test_the_native_ops_load(self, installed: Path, tmp_path: Path) -> None:
        code = "from tokenfold.runtime import libraries as l; print(l.__file__, *l.native_ops())"
        shown = check_run(installed / "python", "-c", code, cwd=tmp_path).split()
        assert all(path.startswith(str(installed.parent)) for path in shown[:2])
        assert shown[2:] in (["avx512", "None"], ["avx2", "None"], ["baseline", "None"])

    def test_it_answers_with_native_ops(
        self, installed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        for variable in {"PYTHONPATH", *MAKE_VARIABLES}:
            monkeypatch.delenv(variable, raising=False)
        monkeypatch.setenv("TOKENFOLD_DATA_DIR", str(tmp_path))
        monkeypatch.chdir(tmp_path)
        command = [str(installed / "tokenfold"), "serve"]
        with serving([], command=command) as service:
            request = post(service.address, "/v1/classify", jpeg(synthetic(40, 30)), {})
            with closing(Client(service.address, [request])) as client:
                assert client() is None
            address = f"http://{service.address.host}:{service.address.port}/v1/models"
            models = httpx.get(address).json()["models"]
        assert models
        assert all(model["native_ops"] for model in models)


def test_an_editable_install_compiles_nothing(tmp_path: Path) -> None:
    """Check that it works without a compiler; `make plugins` builds the library instead."""
    before = sorted((TOP / "tokenfold" / "runtime" / "native").glob("*"))
    check_run(sys.executable, "-m", "venv", tmp_path / "venv")
    pip = (tmp_path / "venv" / "bin" / "python", "-m", "pip", "install", "--quiet", "--no-deps")
    check_run(*pip, "-e", TOP, env=environment(CXX="no-such-compiler", CC="no-such-compiler"))
    code = "import tokenfold.service as m, tokenfold; print(m.__file__, tokenfold.__file__)"
    shown = check_run(tmp_path / "venv" / "bin" / "python", "-c", code, cwd=tmp_path).split()
    assert all(Path(path).resolve().is_relative_to(TOP) for path in shown)
    assert sorted((TOP / "tokenfold" / "runtime" / "native").glob("*")) == before
