"""What TensorRT says: whose error it is, and what of it is in the log."""

from __future__ import annotations

import logging
import threading

import pytest

from tests.runtime.cuda.fake_runtime import FakeRuntime
from tests.runtime.tensorrt.fake_api import FakeApi, Severity
from tokenfold.runtime.tensorrt import journal
from tokenfold.runtime.tensorrt.flavour import Flavour
from tokenfold.runtime.tensorrt.journal import Journal


@pytest.fixture
def flavour() -> Flavour:
    return Flavour("tensorrt", FakeApi(FakeRuntime()))


def test_the_first_error_since_it_was_asked(flavour: Flavour) -> None:
    own = Journal(flavour)
    assert own.take() is None
    own.logger.log(Severity.WARNING, "no error")
    for line in ("[a.cpp::1] Error\n  Code 2:\tthis ", "and so this"):
        own.logger.log(Severity.ERROR, line)
    assert own.take() == "[a.cpp::1] Error Code 2: this"
    assert own.take() is None
    own.logger.log(Severity.INTERNAL_ERROR, "worse")
    assert own.take() == "worse"


def test_one_logger_whoever_asks_first(flavour: Flavour) -> None:
    one, other = Journal(flavour), Journal(flavour)
    assert one.logger is other.logger
    one.logger.log(Severity.ERROR, "said")
    assert other.take() == "said"
    assert Journal(Flavour("tensorrt", FakeApi(FakeRuntime()))).logger is not one.logger


def test_errors_are_those_of_the_thread_that_called(flavour: Flavour) -> None:
    own = Journal(flavour)
    found: list[str | None] = []

    def call() -> None:
        own.logger.log(Severity.ERROR, "there")
        found.append(own.take())

    own.logger.log(Severity.ERROR, "here")
    thread = threading.Thread(target=call)
    thread.start()
    thread.join()
    assert found == ["there"]
    assert own.take() == "here"


def test_what_nobody_asks_for_is_not_kept(flavour: Flavour) -> None:
    own = Journal(flavour)
    for at in range(1000):
        own.logger.log(Severity.ERROR, f"{at}")
    assert len(own.logger.errors.lines) < 100
    assert own.take() == "0"


def test_that_there_is_no_gpu_is_no_error_where_none_is_needed(
    flavour: Flavour, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    line = "[checkMacros.cpp] Error Code 1: Cuda Runtime (cudaError 35: no driver)"
    own = Journal(flavour)
    own.logger.log(Severity.ERROR, line)
    assert own.take() == line
    ahead = Journal(flavour, ahead=True)
    for severity, text in ((Severity.ERROR, line), (Severity.VERBOSE, "much")):
        ahead.logger.log(severity, text)
    assert ahead.take() is None
    ahead.logger.log(Severity.ERROR, "Error Code 2: something else")
    assert ahead.take() == "Error Code 2: something else"
    assert {record.name for record in caplog.records} == {journal.__name__}
    assert [record.levelno for record in caplog.records] == [
        logging.ERROR,
        logging.DEBUG,
        logging.DEBUG,
        logging.ERROR,
    ]
