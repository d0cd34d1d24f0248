"""Tests of the settings: from flags and from the environment, with their checks."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from pydantic import ValidationError
from pydantic_settings import CliApp

from tokenfold.runtime.machine import cores
from tokenfold.service import server
from tokenfold.service.settings import DEMO, Settings


def parse(*flags: str) -> Settings:
    return CliApp.run(Settings, cli_args=list(flags))


def test_default_values() -> None:
    settings = parse()
    assert settings.bundles == DEMO
    assert settings.port == 8000
    assert settings.decoders == cores()
    assert settings.workers is None
    assert settings.backend == "auto"


def test_flags_set_values() -> None:
    settings = parse("--port", "81", "--queue-limit=99", "--no-access-log", "--log-format=text")
    assert (settings.port, settings.queue_limit) == (81, 99)
    assert not settings.access_log
    assert settings.log_format == "text"


def test_flags_override_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOKENFOLD_PORT", "82")
    monkeypatch.setenv("TOKENFOLD_MAX_PIXELS", "1000")
    assert parse().port == 82
    assert parse("--port", "83").port == 83
    assert parse().max_pixels == 1000


def test_the_folder_of_galleries(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/x")
    monkeypatch.delenv("XDG_DATA_HOME", raising=False)
    assert parse().data_dir == "/home/x/.local/share/tokenfold"
    monkeypatch.setenv("XDG_DATA_HOME", "/data")
    assert parse().data_dir == "/data/tokenfold"
    monkeypatch.setenv("XDG_DATA_HOME", "relative")
    assert parse().data_dir == "/home/x/.local/share/tokenfold"
    monkeypatch.setenv("TOKENFOLD_DATA_DIR", "s3://bucket/galleries")
    assert parse().data_dir == "s3://bucket/galleries"
    assert parse("--data-dir=/here").data_dir == "/here"


def test_the_folder_of_engines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/x")
    for cache in ("", "relative"):
        monkeypatch.setenv("XDG_CACHE_HOME", cache)
        assert parse().engines == Path("/home/x/.cache/tokenfold/engines")
    monkeypatch.setenv("XDG_CACHE_HOME", "/cache")
    assert parse().engines == Path("/cache/tokenfold/engines")
    monkeypatch.setenv("TOKENFOLD_ENGINES", "/engines")
    assert parse().engines == Path("/engines")
    # The path is made absolute, because it is passed to another process.
    assert parse("--engines=here").engines == Path.cwd() / "here"
    assert parse("--engines=~/here").engines == Path("/home/x/here")
    for named in ("", "~nobody-of-that-name/here"):
        monkeypatch.setenv("TOKENFOLD_ENGINES", named)
        with pytest.raises(ValidationError, match="engines"):
            parse()


@pytest.mark.parametrize(
    "flag", ["--port=99999", "--workers=0", "--queue-limit=x", "--request-timeout=0"]
)
def test_the_error_for_an_invalid_value_names_the_flag(
    flag: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert server.main([flag]) == 2
    assert flag.split("=")[0].strip("-").replace("-", "_") in capsys.readouterr().err


def test_unknown_flags_and_fields_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        server.main(["--prot=1"])
    assert caught.value.code == 2
    assert "--prot" in capsys.readouterr().err
    with pytest.raises(ValidationError, match="extra"):
        Settings.model_validate({"prot": 1})


def test_the_queue_limit_is_at_least_the_items_of_a_request() -> None:
    with pytest.raises(ValidationError, match="max_items"):
        Settings.model_validate({"queue_limit": 3, "max_items": 4})


def test_the_limit_of_all_bodies_is_at_least_that_of_one() -> None:
    assert parse().bodies_bytes == 2**28
    assert parse(f"--max-body-bytes={2**26}").bodies_bytes == 2**29
    assert parse(f"--max-bodies-bytes={2**27}").bodies_bytes == 2**27
    with pytest.raises(ValidationError, match="max_bodies_bytes"):
        Settings.model_validate({"max_body_bytes": 3, "max_bodies_bytes": 2})


def test_help_lists_every_setting(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        server.main(["--help"])
    assert caught.value.code == 0
    printed = capsys.readouterr().out
    for name in Settings.model_fields:
        assert f"--{name.replace('_', '-')}" in printed
    assert "TOKENFOLD_QUEUE_LIMIT" in re.sub(r"\s", "", printed)


def test_a_folder_without_bundles_is_an_error(
    tmp_path: object, capsys: pytest.CaptureFixture[str]
) -> None:
    assert server.main([f"--bundles={tmp_path}"]) == 1
    assert str(tmp_path) in capsys.readouterr().err
