"""The command `tokenfold inspect`, on the bundles that ship with the project."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.bundle.test_bundle import write
from tokenfold.bundle.bundle import Bundle
from tokenfold.bundle.command import main
from tokenfold.bundle.manifest import MANIFEST
from tokenfold.bundle.summary import Summary, plan_text, summarise

BUNDLES = sorted(Path("models/demo/bundles").iterdir())


@pytest.mark.parametrize("folder", BUNDLES, ids=lambda folder: folder.name)
def test_json_is_the_summary(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(folder), "--json"]) == 0
    bundle = Bundle.open(folder)
    summary = Summary.model_validate_json(capsys.readouterr().out)
    assert summary == summarise(bundle)
    manifest = bundle.manifest
    assert (summary.name, summary.kind, summary.format) == (manifest.name, manifest.kind, 2)
    assert summary.fingerprint == manifest.fingerprint
    assert [level.name for level in summary.levels] == list(manifest.levels)
    assert summary.files == {
        path.name: path.stat().st_size for path in folder.iterdir() if path.name != MANIFEST
    }
    full = summary.levels[0]
    assert full.flops == manifest.workload.flops(full.plan)
    for level in summary.levels:
        assert level.flops / full.flops == pytest.approx(level.flops_ratio)
        assert level.quality


@pytest.mark.parametrize("folder", BUNDLES, ids=lambda folder: folder.name)
def test_tables_have_the_same_facts(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "400")
    assert main([str(folder)]) == 0
    text = capsys.readouterr().out
    summary = summarise(Bundle.open(folder))
    facts = [summary.name, summary.kind, summary.method, summary.precision, summary.fingerprint]
    facts += [f"{package} {version}" for package, version in summary.versions.items()]
    facts += [*summary.tasks, *summary.files, f"{summary.default_level} (default)"]
    for level in summary.levels:
        facts += [level.name, f"{100 * level.flops_ratio:.1f} %", plan_text(level.plan)]
        facts += [f"{100 * quality.value:.1f} (" for quality in level.quality.values()]
    assert [fact for fact in facts if fact not in text] == []


def test_a_bundle_that_was_not_measured(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path / "b")
    assert main([str(tmp_path / "b"), "--json"]) == 0
    summary = json.loads(capsys.readouterr().out)
    assert summary["measurement"] is None
    assert summary["tasks"] == {"classify": 2}
    assert [level["quality"] for level in summary["levels"]] == [{}, {}]
    assert main([str(tmp_path / "b")]) == 0
    assert "latency" not in capsys.readouterr().out


def test_folders_that_are_no_bundles_are_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert error.startswith("tokenfold inspect: ")
    assert f"{tmp_path / MANIFEST} is missing" in error
    write(tmp_path / "b")
    manifest = json.loads((tmp_path / "b" / MANIFEST).read_text())
    (tmp_path / "b" / MANIFEST).write_text(json.dumps(manifest | {"format": 9}))
    assert main([str(tmp_path / "b")]) == 2
    assert "has format 9; this version reads formats 1 and 2" in capsys.readouterr().err


def test_plans_are_run_lengths() -> None:
    assert plan_text((0, 0, 0)) == "-"
    assert plan_text((4, 4, 4, 3, 3, 0)) == "4x3 3x2 0"


def test_inspect_imports_neither_torch_nor_a_runtime() -> None:
    code = (
        "import sys; from tokenfold.cli import main\n"
        "code = main(['inspect', sys.argv[1]])\n"
        "heavy = {'torch', 'onnx', 'onnxruntime', 'fastapi'} & set(sys.modules)\n"
        "sys.exit(code or ', '.join(heavy) or None)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(BUNDLES[0])], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "fingerprint" in done.stdout
